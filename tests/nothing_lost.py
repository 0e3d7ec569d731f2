"""Kill a small run of the workflow at random moments, let it go on, and compare every result.

    python tests/nothing_lost.py [--trials 20] [--seed 0]

An undisturbed run comes first. Each trial then starts anew, is disturbed at a random moment in one
of these ways, and is continued by `snakemake --unlock` and `snakemake` with the same arguments. The
moment is a random number of finished jobs and up to a job's time more, so that it falls inside the
run however busy the machine is; a trial whose run ended all the same is made again with another
moment.

    SIGTERM      to Snakemake alone: it finishes its running jobs and ends
    SIGKILL      to Snakemake and all its jobs at once
    orphans      SIGKILL to Snakemake alone: its jobs go on beside the next run
    dead worker  SIGKILL to one job
    full disk    nothing more can be written until the run has ended (where a disk can be mounted)

Images, plans, kernels, scores and figures of these must be the undisturbed run's byte for byte, the
records but for the times and memory they measured, and the command `verify` must find no fault. The
exit status is 1 if a trial was not so. It takes about a minute a trial on two cores.
"""

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import yaml
from helpers import copy_of_project, pythonpath

from reproduction.tables.tables import read_table

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2"]
WAYS = ("SIGTERM", "SIGKILL", "orphans", "dead worker", "full disk")
DISK = 400  # megabytes, of which the project takes about 30
MEASURED = ["seconds", "reference_seconds", "decode_seconds", "peak_memory_mb"]
EXACT = ("images/**/*.png", "kernels/*.safetensors", "plans/*/*.safetensors", "scores/*.csv",
         "errors.csv")  # fmt: skip


def small_project(folder: Path) -> Path:
    """Copy the project with an experiment of a few jobs, every stage among them."""
    copy_of_project(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"num_prompts": 2, "budgets": [3], "shards": 2, "timed_prompts": 1}
    config["arguments"] |= {"num_inference_steps": 8, "height": 64, "width": 64}
    config["calibration"]["num_prompts"] = 3
    config["methods"] = {
        "EigenCache-design": {"method": "EigenCache-design"},
        "EigenCache": {"method": "EigenCache", "held_out": 1},
    }
    config["figures"] = {"samples": {"budget": 3, "prompts": [0, 1]}, "plans": {"budget": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def start(folder: Path, printed: Path) -> subprocess.Popen:
    """Start the workflow in a session of its own; what it prints is added to a file."""
    with open(printed, "a") as file:
        return subprocess.Popen(
            SNAKEMAKE, cwd=folder, start_new_session=True, stdout=file, stderr=file,
            env=os.environ | {"PYTHONPATH": str(folder)},
        )  # fmt: skip


def unlock(folder: Path, printed: Path) -> None:
    """Remove the locks of a killed Snakemake; what is printed is added to a file."""
    with open(printed, "a") as file:
        subprocess.run([*SNAKEMAKE, "--unlock"], cwd=folder, stdout=file, stderr=file, check=True)


def digest(folder: Path) -> dict[str, str]:
    """Return a hash of every result that must not depend on how often the run was disturbed."""
    results, found = folder / "results" / "emoji-flux", {}
    exact = [path for pattern in EXACT for path in results.glob(pattern)]
    exact += [path for path in folder.glob("figures/*/*.pdf") if path.stem in ("kernel", "plans")]
    for path in exact:
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in results.glob("records/*.csv"):
        table = read_table(path).drop(columns=MEASURED)
        hashed = pd.util.hash_pandas_object(table).to_numpy()
        found[str(path.relative_to(folder))] = hashlib.sha256(hashed.tobytes()).hexdigest()
    return found


@contextlib.contextmanager
def disk(folder: Path, mounted: bool) -> Iterator[Path]:
    """Yield an empty folder, on a small disk of its own if wanted."""
    folder.mkdir()
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", folder], check=True)
    try:
        (folder / "project").mkdir()
        yield folder / "project"
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder)


def can_mount() -> bool:
    """Whether this user may mount a small disk."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder) / "disk", mounted=True):
                return True
        except (subprocess.CalledProcessError, FileNotFoundError, PermissionError):
            return False


def jobs_of(running: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes of Snakemake's jobs: whatever it has started and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(running.pid).children(recursive=True)
    return []


def disturb(way: str, running: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """Disturb a run in one of the ways."""
    jobs = jobs_of(running)
    if way == "SIGTERM":
        running.terminate()
    elif way == "orphans":
        running.kill()
    elif way == "dead worker" and jobs:
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(jobs).kill()
    elif way == "SIGKILL":
        running.kill()
        for job in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.kill()
    elif way == "full disk":
        with contextlib.suppress(OSError), open(folder.parent / "ballast", "wb") as ballast:
            while True:
                ballast.write(bytes(1 << 16))
                ballast.flush()


def steps_done(printed: Path) -> tuple[int, int]:
    """Return how many jobs of a run have ended, by what it printed, and how many there are."""
    done = re.findall(r"^(\d+) of (\d+) steps", printed.read_text(), re.MULTILINE)
    return tuple(map(int, done[-1])) if done else (0, 1)


def wait_for(jobs: int, seconds: float, running: subprocess.Popen, printed: Path) -> None:
    """Wait until so many jobs of a run have ended, and so many seconds more, or until it ends."""
    while running.poll() is None and steps_done(printed)[0] < jobs:
        time.sleep(0.1)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(seconds)


def trial(
    way: str, jobs: int, seconds: float, draw: random.Random, expected: dict, scratch: Path
) -> dict | None:
    """Disturb one run after so many jobs and seconds more, continue it, and return its row.

    Returns:
        the row of the table; None if the run had ended before it could be disturbed.
    """
    with disk(scratch / "trial", mounted=way == "full disk") as folder:
        small_project(folder)
        printed = scratch / "printed.txt"
        printed.write_text("")
        running = start(folder, printed)
        wait_for(jobs, seconds, running, printed)
        if running.poll() is not None:
            return None
        disturb(way, running, folder, draw)
        first = running.wait()
        made = len(digest(folder))
        (folder.parent / "ballast").unlink(missing_ok=True)
        unlock(folder, printed)
        second = start(folder, printed).wait()
        found = digest(folder)
        verified = subprocess.run(
            [sys.executable, "-m", "reproduction.commands.verify", "results", "figures"],
            cwd=folder, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": pythonpath(folder)},
        )  # fmt: skip
        identical = found == expected
        row = {
            "way": way,
            "jobs_done": jobs,
            "seconds_more": round(seconds, 1),
            "results_made": made,
            "exit": first,
            "next_exit": second,
            "identical": identical,
            "verified": verified.returncode == 0,
        }
        if second or not identical or verified.returncode:
            shutil.copytree(folder, scratch / f"failed-{way}-{jobs}-{seconds:.1f}", symlinks=True)
            print(verified.stdout[-2000:], verified.stderr[-2000:])
            print({k for k in expected | found if expected.get(k) != found.get(k)})
    return row


def main(arguments: argparse.Namespace) -> int:
    draw = random.Random(arguments.seed)
    scratch = Path(tempfile.mkdtemp(prefix="nothing-lost-"))
    ways = WAYS if can_mount() else WAYS[:-1]
    if len(ways) < len(WAYS):
        print("full disk: left out, since this user may not mount a small disk")
    with disk(scratch / "undisturbed", mounted=False) as folder:
        small_project(folder)
        began = time.monotonic()
        printed = scratch / "printed.txt"
        if start(folder, printed).wait():
            print(printed.read_text()[-5000:])
            return 1
        whole, (jobs, _) = time.monotonic() - began, steps_done(printed)
        expected = digest(folder)
    print(f"undisturbed: {whole:.0f} s, {jobs} jobs, {len(expected)} results to compare")
    rows = []
    while len(rows) < arguments.trials:
        way, moment = ways[len(rows) % len(ways)], (draw.randrange(jobs), draw.uniform(0, 8))
        row = trial(way, *moment, draw, expected, scratch)
        if row is None:
            print(f"{way} after {moment[0]} jobs: the run had ended; again", flush=True)
            continue
        rows.append(row)
        print(row, flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    kept = table.identical & table.verified & (table.next_exit == 0)
    print(f"{kept.sum()} of {len(table)} trials: finished by the next run, every result as it was")
    if kept.all():
        shutil.rmtree(scratch)
    return int(not kept.all())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
