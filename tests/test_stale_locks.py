"""Locks of a killed Snakemake are forgotten, those of a living one are kept."""

import subprocess
import sys

import pytest

from eigencache.stale_locks import forget_stale_locks

HOLD = """
import sys
from eigencache.stale_locks import forget_stale_locks
held = forget_stale_locks(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "locks").mkdir()
    return tmp_path


def lock(folder):
    """Write a lock as Snakemake does; return its path."""
    path = folder / "locks" / "0.output.lock"
    path.write_text("results/a.csv")
    return path


def start(folder):
    running = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert running.stdout.readline() == b"held\n"
    return running


def test_a_stale_lock_is_deleted(folder):
    path = lock(folder)
    forget_stale_locks(folder).close()
    assert not path.exists()


def test_a_living_process_keeps_its_locks_until_it_is_killed(folder):
    running = start(folder)
    path = lock(folder)
    forget_stale_locks(folder).close()
    assert path.exists()
    running.kill()
    running.wait()
    forget_stale_locks(folder).close()
    assert not path.exists()


def test_of_two_living_processes_either_keeps_them(folder):
    """A dry run that began beside the first must not open the way for a third when it ends."""
    first, second = start(folder), start(folder)
    path = lock(folder)
    for running in (first, second):
        forget_stale_locks(folder).close()
        assert path.exists()
        running.kill()
        running.wait()
    forget_stale_locks(folder).close()
    assert not path.exists()


def test_a_file_system_that_cannot_lock_changes_nothing(folder, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    path = lock(folder)
    assert forget_stale_locks(folder) is None
    assert path.exists()


def test_a_first_run_has_no_folder_yet(tmp_path):
    forget_stale_locks(tmp_path / ".snakemake").close()
    assert (tmp_path / ".snakemake").is_dir()
