"""Snakemake's locks, forgotten once whoever wrote them is dead.

Snakemake writes into `.snakemake/locks` which files it is about to make, and a killed Snakemake
leaves that behind: the next one refuses to start until it is told to `--unlock`. Here every running
Snakemake of a folder also holds a shared lock that the kernel releases with it. Whoever gets that
lock alone knows that nobody runs, and that what lies in `.snakemake/locks` is stale.
"""

import fcntl
from pathlib import Path
from typing import TextIO


def forget_stale_locks(folder: str | Path) -> TextIO | None:
    """Delete locks that no living Snakemake holds; return what to keep open while this one runs.

    Where the file system cannot lock, nothing is deleted, and Snakemake's own way stands.

    Args:
        folder: Snakemake's, `.snakemake`.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    held = open(folder / "eigencache.lock", "w")  # noqa: SIM115 (open as long as the process)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # another runs: its locks are not stale
    except OSError:
        held.close()
        return None
    else:
        for lock in folder.glob("locks/*.lock"):
            lock.unlink(missing_ok=True)
    # Shared: a dry run beside this one must neither wait for it nor take its locks for stale.
    fcntl.flock(held, fcntl.LOCK_SH)
    return held
