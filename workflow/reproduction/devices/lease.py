"""Lease: run a command on GPUs of this machine that no other leased command is using.

    python -m reproduction.devices.lease GPUS -- command ...

Snakemake counts GPUs but does not tell a job which one to use. A lease is a lock on one file per
device; the command takes this process's place and inherits the locks, so that the kernel frees the
devices when the command ends, however it ends. EIGENCACHE_DEVICE, which is `auto`, `gpu` or `cpu`
here, is handed on as what was decided: `gpu` if devices were leased, `cpu` if not. docs/gpus.md
says more. It runs before every job of the network, and so imports nothing slow.
"""

import argparse
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

DEVICE, VISIBLE = "EIGENCACHE_DEVICE", "CUDA_VISIBLE_DEVICES"
# Each of them is set in the jobs of a scheduler: Slurm, PBS, LSF.
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
# Not the TMPDIR, which Snakemake and schedulers change: all jobs must find the same locks.
LOCKS = Path(f"/tmp/eigencache-leases-{os.getuid()}")


class LeaseError(ValueError):
    """The requested devices are not available; the message says why and what to do."""


def listed() -> dict[str, list[str]]:
    """Return the UUID of every GPU that nvidia-smi lists, in its order, with what can be leased.

    That is the GPU itself, or its MIG instances if it is split. It is empty where nvidia-smi is
    not installed or says that there is no GPU or no driver.

    Raises:
        LeaseError: nvidia-smi fails in another way, so that there may well be a GPU.
    """
    if not shutil.which("nvidia-smi"):
        return {}
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if asked.returncode not in (0, 6, 9):  # 6: no device was found, 9: no driver is loaded
        raise LeaseError(
            f"nvidia-smi ends with code {asked.returncode}: {(asked.stdout + asked.stderr).strip()}"
            "; repair the driver, or set `device: cpu` to do without"
        )
    gpus: dict[str, list[str]] = {}
    for uuid in re.findall(r"\(UUID: ([^)]+)\)", asked.stdout):
        if uuid.startswith("MIG-"):  # an instance, listed below its GPU
            gpus[next(reversed(gpus))].append(uuid)
        else:
            gpus[uuid] = []
    return {gpu: instances or [gpu] for gpu, instances in gpus.items()}


def visible(gpus: dict[str, list[str]]) -> list[str]:
    """Return the devices that this process may use, under one name each, in order.

    CUDA_VISIBLE_DEVICES is resolved to UUIDs where nvidia-smi lists them; its indices count as
    there. Elsewhere the names are taken as they are.

    Args:
        gpus: from `listed`.

    Raises:
        LeaseError: CUDA_VISIBLE_DEVICES is malformed, or names a device twice or one that is none.
    """
    given = os.environ.get(VISIBLE)
    if given is None:
        return [device for devices in gpus.values() for device in devices]
    names = [name.strip() for name in given.split(",")] if given.strip() else []
    # CUDA ends the list there too; the word is Slurm's for a job without devices.
    end = next((i for i, name in enumerate(names) if name in ("-1", "NoDevFiles")), len(names))
    devices = [device for name in names[:end] for device in _resolved(name, gpus)]
    if len(set(devices)) < len(devices):
        raise LeaseError(f"{VISIBLE}={given} names a device twice")
    return devices


def _resolved(name: str, gpus: dict[str, list[str]]) -> list[str]:
    if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name):
        raise LeaseError(
            f"{VISIBLE}={os.environ[VISIBLE]}: {name!r} is neither an index nor a UUID "
            "(GPU-... or MIG-...)"
        )
    if name.isdigit():
        name = str(int(name))
    if not gpus:
        return [name]
    if name.isdigit():
        found = list(gpus.values())[int(name) : int(name) + 1]
    else:  # CUDA takes the beginning of a UUID for the whole
        known = gpus | {device: [device] for devices in gpus.values() for device in devices}
        found = [devices for uuid, devices in known.items() if uuid.startswith(name)]
    if len(found) != 1:
        raise LeaseError(
            f"{VISIBLE}={os.environ[VISIBLE]}: {name} is {'none' if not found else 'several'} of "
            f"the GPUs that nvidia-smi lists, {', '.join(gpus)}"
        )
    return found[0]


def lease(count: int, devices: Sequence[str]) -> list[str]:
    """Return `count` of the devices, locked by file descriptors that a command will inherit.

    It takes all or none at a time. Who waits for devices queues with those that may use the same
    ones, so that a command that wants several is not overtaken for ever.

    Raises:
        OSError: the lock files cannot be made, or belong to someone else.
    """
    folder = _folder()
    queue = _open(folder / queue_name(devices))
    locks = _locked(queue) and _take(count, devices, folder)
    if not locks:
        say(f"waiting for {count} of {', '.join(devices)}")
        fcntl.flock(queue, fcntl.LOCK_EX)
        while not (locks := _take(count, devices, folder)):
            time.sleep(random.uniform(0.05, 0.15))
    for lock in locks.values():
        os.utime(lock)  # cleaners of /tmp go by age
        os.set_inheritable(lock, True)  # the queue's is not: it ends when the command starts
    return list(locks)


def queue_name(devices: Sequence[str]) -> str:
    """Return the name of the file whose lock is held by the first who waits for these devices."""
    return "queue-" + hashlib.sha256(" ".join(sorted(devices)).encode()).hexdigest()[:16]


def _folder() -> Path:
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    if LOCKS.lstat().st_uid != os.getuid():
        raise PermissionError(f"{LOCKS} belongs to another user; have it removed")
    # By itself an index is no name: it may mean another device in another job of a scheduler.
    folder = LOCKS / _scheduler_job().replace("/", "_")
    folder.mkdir(exist_ok=True)
    return folder


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _locked(file: int) -> bool:
    """Lock an open file if it is free; return whether it was."""
    # Not the library filelock: it gives no access to the descriptor that the command inherits.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(count: int, devices: Sequence[str], folder: Path) -> dict[str, int]:
    """Return `count` devices and their locks, or nothing (and hold nothing) if fewer are free."""
    locks: dict[str, int] = {}
    for device in devices:
        if len(locks) == count:
            break
        file = _open(folder / device.replace("/", "_"))
        if _locked(file):
            locks[device] = file
        else:
            os.close(file)
    if len(locks) == count:
        return locks
    for file in locks.values():
        os.close(file)
    return {}


def decide(count: int, wish: str) -> dict[str, str]:
    """Lease devices if there are any to lease; return what to set in the command's environment.

    Args:
        count: the number of GPUs; 0 runs on the CPU.
        wish: "auto" (a GPU if there is one), "gpu" (an error if there is none) or "cpu".

    Raises:
        LeaseError: what is wished for is not to be had.
        OSError: as `lease`.
    """
    if wish not in ("auto", "gpu", "cpu"):
        raise LeaseError(f"{DEVICE}={wish}: it must be auto, gpu or cpu")
    if wish == "cpu":
        return _on_cpu("`device: cpu`")
    if count == 0:
        return _without_gpu(wish, "none was asked for (gpu=0)")
    gpus = listed()
    devices = visible(gpus)
    if not devices:
        where = f"{VISIBLE} is empty" if VISIBLE in os.environ else "no nvidia-smi that lists one"
        return _without_gpu(wish, f"there is none here ({where})")
    if count > len(devices):
        raise LeaseError(
            f"{count} GPUs for one job, but there are {len(devices)} here: {', '.join(devices)}"
        )
    if _scheduler_job() and count == len(devices):
        say(f"the scheduler's devices, as given: {VISIBLE}={os.environ.get(VISIBLE, '')}")
        return {DEVICE: "gpu" if gpus else wish}
    devices = lease(count, devices)
    say(f"got {', '.join(devices)}")
    return {VISIBLE: ",".join(devices), DEVICE: "gpu"}


def _without_gpu(wish: str, why: str) -> dict[str, str]:
    if wish == "gpu":
        raise LeaseError(f"`device: gpu`, but no GPU: {why}")
    return _on_cpu(f"no GPU: {why}")


def _on_cpu(why: str) -> dict[str, str]:
    say(f"a run on the CPU, {why}")
    return {VISIBLE: "", DEVICE: "cpu"}


def _scheduler_job() -> str:
    """Return the id of the scheduler's job that this runs in, or nothing."""
    return next((os.environ[name] for name in SCHEDULERS if name in os.environ), "")


def say(text: str) -> None:
    """Print one line about the lease to stderr."""
    print(f"eigencache lease: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line, `GPUS -- command ...`: this process becomes the command."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, command = sys.argv[1:end], sys.argv[end + 1 :]
    parser = argparse.ArgumentParser(
        "eigencache lease", description=__doc__.split("\n")[0], usage="%(prog)s GPUS -- command ..."
    )
    parser.add_argument("gpus", type=int, help="how many; 0 is a run on the CPU")
    gpus = parser.parse_args(own).gpus
    if gpus < 0 or not command:
        parser.error("expected a number of GPUs, 0 or more, then -- and a command")
    try:
        os.environ.update(decide(gpus, os.environ.get(DEVICE, "auto")))
    except (LeaseError, OSError) as error:
        sys.exit(f"eigencache lease: {error}")
    except KeyboardInterrupt:  # Ctrl-C while it waits is no traceback
        sys.exit(128 + signal.SIGINT)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"eigencache lease: {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
