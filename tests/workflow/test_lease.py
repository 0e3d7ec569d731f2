"""GPU leases, as real processes that contend for devices a stand-in of nvidia-smi lists."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from helpers import pythonpath

from reproduction.devices.lease import (
    DEVICE,
    LOCKS,
    SCHEDULERS,
    VISIBLE,
    LeaseError,
    listed,
    queue_name,
    visible,
)

ROOT = Path(__file__).parents[2]
LEASE = [sys.executable, "-m", "reproduction.devices.lease"]
# A job: notes its devices with its first and last moment, in a file of its own.
JOB = """
import json, os, sys, time
start = time.monotonic()
time.sleep(float(sys.argv[2]))
note = {"ids": os.environ["CUDA_VISIBLE_DEVICES"].split(","), "start": start}
with open(f"{sys.argv[1]}/{os.getpid()}.json", "w") as file:
    json.dump(note | {"end": time.monotonic()}, file)
"""


def heeding_interrupts() -> None:
    """Undo what tests that run in the background of a shell inherit: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Machine:
    """An environment in which nvidia-smi lists GPUs that nobody else's locks are for.

    Args:
        folder: for nvidia-smi and the notes of the jobs.
        count: of GPUs.
    """

    def __init__(self, folder: Path, count: int):
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.started: list[subprocess.Popen] = []
        self.gpus = [f"GPU-{uuid.uuid4()}" for _ in range(count)]
        lines = (f"GPU {i}: Pretend (UUID: {gpu})" for i, gpu in enumerate(self.gpus))
        self.env = with_nvidia_smi(folder, "\n".join(lines))

    def start(self, count: int, *command: str, **env: str) -> subprocess.Popen:
        """Start a leased command; its `stderr` is to be read."""
        self.started.append(
            subprocess.Popen(
                [*LEASE, str(count), "--", *command],
                cwd=ROOT, env=self.env | env, text=True, stderr=subprocess.PIPE,
                preexec_fn=heeding_interrupts,
            )
        )  # fmt: skip
        return self.started[-1]

    def job(self, count: int, seconds: float, **env: str) -> subprocess.Popen:
        """Start a leased job of so many seconds."""
        job = [sys.executable, "-ISc", JOB, str(self.notes), str(seconds)]
        return self.start(count, *job, **env)

    def stop(self) -> None:
        """Kill every job that still runs."""
        for job in self.started:
            job.kill()

    def note(self, job: subprocess.Popen) -> dict:
        """Wait for a job to end; return what it noted."""
        _, printed = job.communicate(timeout=60)
        assert job.returncode == 0, printed
        return json.loads((self.notes / f"{job.pid}.json").read_text())


def with_nvidia_smi(folder: Path, output: str, code: int = 0) -> dict[str, str]:
    """Return an environment with an nvidia-smi that prints this, outside any scheduler."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    script.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in (DEVICE, VISIBLE, *SCHEDULERS)}
    return kept | {"PATH": f"{folder}{os.pathsep}{kept['PATH']}", "PYTHONPATH": pythonpath()}


@pytest.fixture
def machine(tmp_path):
    """A machine with three GPUs; their lock files are removed afterwards."""
    made = Machine(tmp_path, 3)
    guard = threading.Timer(60, made.stop)  # a job that waits for ever fails the test
    guard.start()
    yield made
    guard.cancel()
    made.stop()
    for some in itertools.chain(*(itertools.combinations(made.gpus, n) for n in (1, 2, 3))):
        for name in (queue_name(some), some[0]):
            (LOCKS / name).unlink(missing_ok=True)


@pytest.fixture
def environment(monkeypatch):
    """Replaces the environment of this process by another."""

    def replace(env: dict[str, str]) -> None:
        for name in set(os.environ) - set(env):
            monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    return replace


def leased(env: dict[str, str], count: int, code: str = "") -> subprocess.CompletedProcess:
    """Run a command under a lease that prints what the lease sets, and then runs `code`."""
    show = f"import os; print(os.environ.get({VISIBLE!r}), os.environ.get({DEVICE!r})); {code}"
    return subprocess.run(
        [*LEASE, str(count), "--", sys.executable, "-ISc", show],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=60,
    )  # fmt: skip


def line_with(job: subprocess.Popen, text: str) -> str:
    """Return the first line of a job's stderr that has this text."""
    return next(line for line in job.stderr if text in line)


def assert_exclusive(notes: list[dict], gpus: list[str]) -> None:
    """Check that each device was used several times, and never by two jobs at once."""
    for gpu in gpus:
        uses = sorted((note["start"], note["end"]) for note in notes if gpu in note["ids"])
        assert len(uses) > 1
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(uses)), gpu


@pytest.mark.slow
def test_fifty_jobs_never_share_a_device_however_it_is_spelt(machine):
    short = ",".join(gpu[:20] for gpu in reversed(machine.gpus))
    spellings = [{}, {VISIBLE: "0, 1,2"}, {VISIBLE: short}]
    counts = [1, 1, 2, 1, 1] * 10
    jobs = [
        machine.job(count, 0.05, **env)
        for count, env in zip(counts, itertools.cycle(spellings), strict=False)
    ]
    notes = [machine.note(job) for job in jobs]
    assert [len(set(note["ids"])) for note in notes] == counts
    assert {gpu for note in notes for gpu in note["ids"]} == set(machine.gpus)
    assert_exclusive(notes, machine.gpus)


def test_all_devices_are_in_use_at_once(machine):
    # Each job ends only when three run: a lease that let one in at a time would never end.
    wait = (
        "import os, pathlib, sys, time; notes = pathlib.Path(sys.argv[1])\n"
        "(notes / str(os.getpid())).touch()\n"
        "while len(list(notes.iterdir())) < 3: time.sleep(0.01)"
    )
    jobs = [
        machine.start(1, sys.executable, "-ISc", wait, str(machine.notes)) for _ in machine.gpus
    ]
    assert [job.wait() for job in jobs] == [0, 0, 0]


def test_job_on_two_gpus_is_not_overtaken(machine):
    two = {VISIBLE: "0,1"}
    first = machine.start(1, "sleep", "60", **two)
    line_with(first, "got")
    pair = machine.job(2, 0, **two)
    line_with(pair, "waiting for 2 of")
    single = machine.job(1, 0, **two)
    line_with(single, "waiting for 1 of")  # though the second device is free
    time.sleep(0.5)
    assert not list(machine.notes.iterdir())
    first.kill()
    assert machine.note(pair)["end"] < machine.note(single)["start"]


def test_job_waits_for_none_but_its_own_devices(machine):
    holder = machine.start(1, "sleep", "60", **{VISIBLE: "0"})
    line_with(holder, "got")
    waiter = machine.start(1, "true", **{VISIBLE: "0"})
    line_with(waiter, "waiting")
    assert machine.note(machine.job(1, 0, **{VISIBLE: "1"}))["ids"] == [machine.gpus[1]]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_job_frees_its_devices_at_once(machine, sign):
    holder = machine.start(3, "sleep", "60")
    line_with(holder, "got")
    waiter = machine.start(3, "true")
    line_with(waiter, "waiting")
    waiter.send_signal(sign)
    assert "Traceback" not in waiter.communicate()[1]
    holder.send_signal(sign)
    assert holder.wait(timeout=10) != 0
    done = leased(machine.env, 3)
    assert done.returncode == 0 and "waiting" not in done.stderr


@pytest.mark.parametrize("kept", [True, False], ids=["forked", "started by subprocess"])
def test_device_is_held_by_those_that_inherited_the_lock(machine, kept):
    # A forked process has the job's open files, and may be what uses the GPU; a process that
    # Python's subprocess starts has none of them.
    child = (
        "pid = os.fork() or (time.sleep(60), os._exit(0))"
        if kept
        else "pid = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid"
    )
    show = f"import os, subprocess, sys, time; {child}; print(pid, file=sys.stderr, flush=True)"
    job = machine.start(3, sys.executable, "-ISc", show)
    line_with(job, "got")
    pid = int(job.stderr.readline())
    job.wait()
    following = machine.start(3, "true")
    assert ("waiting" in following.stderr.readline()) == kept
    os.kill(pid, signal.SIGKILL)
    following.communicate(timeout=10)
    assert following.returncode == 0


def start_workflow(folder: Path, job: str, **options) -> subprocess.Popen:
    """Start a workflow of three leased jobs, two at once, in a new folder."""
    folder.mkdir()
    (folder / "Snakefile").write_text(
        "rule all:\n    input: expand('{i}.done', i=range(3))\n"
        "rule job:\n    output: '{i}.done'\n    resources: gpu=1\n"
        "    shell: 'python -m reproduction.devices.lease {resources.gpu} -- "
        f"{job} && touch {{output}}'\n"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=2"],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_two_workflows_at_once_never_share(machine, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "python").symlink_to(sys.executable)
    job = f"{sys.executable} -IS {tmp_path}/job.py {machine.notes} 1"
    spellings = {"one": "0,1", "other": ",".join(machine.gpus[:2])}
    runs = [
        start_workflow(tmp_path / name, job, env=machine.env | {VISIBLE: spelling})
        for name, spelling in spellings.items()
    ]
    printed = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    notes = [json.loads(path.read_text()) for path in machine.notes.iterdir()]
    assert len(notes) == 6 and any("waiting" in text for text in printed)
    assert_exclusive(notes, machine.gpus[:2])


def test_every_rule_that_asks_for_a_gpu_has_a_lease():
    rules = "\n".join(path.read_text() for path in ROOT.glob("workflow/rules/*.smk"))
    asking = [rule for rule in re.split(r"^(?=rule )", rules, flags=re.M) if "gpu=" in rule]
    assert len(asking) >= 4
    for rule in asking:
        assert '"python -m reproduction.devices.lease {resources.gpu} -- "\n' in rule, rule


@pytest.mark.parametrize("job", SCHEDULERS)
def test_devices_of_a_scheduler_are_taken_as_given(machine, job):
    holder = machine.start(3, "sleep", "60")
    line_with(holder, "got")
    done = leased(machine.env | {job: "7", VISIBLE: "1"}, 1)
    assert done.stdout == "1 gpu\n" and "as given: CUDA_VISIBLE_DEVICES=1" in done.stderr


def test_workflow_inside_one_job_of_a_scheduler_has_leases(machine):
    inside = machine.env | {"SLURM_JOB_ID": uuid.uuid4().hex, VISIBLE: "0,2"}
    holder = machine.start(1, "sleep", "60", **inside)
    line_with(holder, machine.gpus[0])
    assert leased(inside, 1).stdout == f"{machine.gpus[2]} gpu\n"
    # The same index in another job of the scheduler is another device.
    other = inside | {"SLURM_JOB_ID": uuid.uuid4().hex}
    assert leased(other, 1).stdout == f"{machine.gpus[0]} gpu\n"
    for job in (inside, other):
        for lock in (LOCKS / job["SLURM_JOB_ID"]).iterdir():
            lock.unlink()
        (LOCKS / job["SLURM_JOB_ID"]).rmdir()


NO_DRIVER = ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)


@pytest.mark.parametrize(
    ("count", "output", "env", "why"),
    [
        (0, ("GPU 0: Pretend (UUID: GPU-a)",), {}, "none was asked for"),
        (1, ("GPU 0: Pretend (UUID: GPU-a)",), {DEVICE: "cpu"}, "device: cpu"),
        (1, ("GPU 0: Pretend (UUID: GPU-a)",), {VISIBLE: ""}, "CUDA_VISIBLE_DEVICES is empty"),
        (1, ("GPU 0: Pretend (UUID: GPU-a)",), {VISIBLE: "-1"}, "CUDA_VISIBLE_DEVICES is empty"),
        (1, NO_DRIVER, {}, "no nvidia-smi that lists one"),
        (2, ("No devices were found", 6), {"SLURM_JOB_ID": "7"}, "no nvidia-smi that lists one"),
    ],
)
def test_run_on_the_cpu_is_declared(tmp_path, count, output, env, why):
    done = leased(with_nvidia_smi(tmp_path, *output) | env, count)
    assert done.stdout == " cpu\n"
    assert "a run on the CPU" in done.stderr and why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("count", "output", "env", "why"),
    [
        (4, None, {}, "4 GPUs for one job, but there are 3 here"),
        (2, None, {VISIBLE: "1"}, "2 GPUs for one job, but there are 1 here"),
        (0, None, {DEVICE: "gpu"}, "none was asked for"),
        (1, NO_DRIVER, {DEVICE: "gpu"}, "no nvidia-smi that lists one"),
        (1, None, {DEVICE: "gpu", VISIBLE: ""}, "CUDA_VISIBLE_DEVICES is empty"),
        (1, ("Driver/library version mismatch", 18), {}, "code 18: Driver/library version"),
        (1, None, {DEVICE: "cuda"}, "EIGENCACHE_DEVICE=cuda: it must be auto, gpu or cpu"),
        (1, None, {VISIBLE: "0,,1"}, "'' is neither an index nor a UUID"),
        (1, None, {VISIBLE: "0;1"}, "'0;1' is neither an index nor a UUID"),
        (1, None, {VISIBLE: "cuda:0"}, "'cuda:0' is neither"),
        (1, None, {VISIBLE: "3"}, "3 is none of the GPUs that nvidia-smi lists"),
        (1, None, {VISIBLE: "GPU-"}, "is neither an index nor a UUID"),
        (1, None, {VISIBLE: "GPU-no"}, "GPU-no is none of"),
        (1, None, {VISIBLE: "0,1,00"}, "names a device twice"),
    ],
)
def test_what_is_not_to_be_had_is_an_error_and_nothing_runs(machine, tmp_path, count, output, env,
                                                            why):  # fmt: skip
    given = with_nvidia_smi(tmp_path, *output) if output else machine.env
    done = leased(given | env, count)
    assert done.returncode == 1 and done.stdout == ""
    assert why in done.stderr and done.stderr.count("\n") == 1


def test_command_line_goes_to_the_command_as_it_is(machine):
    done = subprocess.run(
        [*LEASE, "0", "--", "printf", "%s,", "a b", "--", "-x", ""],
        cwd=ROOT, env=machine.env, text=True, capture_output=True,
    )  # fmt: skip
    assert done.stdout == "a b,--,-x,,"
    for mistake in (["1"], ["1", "--"], ["-1", "--", "true"], ["one", "--", "true"]):
        done = subprocess.run([*LEASE, *mistake], cwd=ROOT, env=machine.env, capture_output=True)
        assert done.returncode == 2
    done = subprocess.run(
        [*LEASE, "1", "--", "no-such-command"],
        cwd=ROOT, env=machine.env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "no-such-command: No such file" in done.stderr


def test_lease_imports_nothing_slow():
    code = "import sys, reproduction.devices.lease; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert not {"torch", "numpy", "diffusers", "yaml"} & set(names.stdout.split())


SPLIT = """GPU 0: NVIDIA H200 (UUID: GPU-11)
  MIG 3g.71gb     Device  0: (UUID: MIG-22)
  MIG 3g.71gb     Device  1: (UUID: MIG-33)
GPU 1: NVIDIA H200 (UUID: GPU-44)"""


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        (None, ["MIG-22", "MIG-33", "GPU-44"]),
        ("1,0", ["GPU-44", "MIG-22", "MIG-33"]),
        ("MIG-33,GPU-44", ["MIG-33", "GPU-44"]),
        ("GPU-1", ["MIG-22", "MIG-33"]),
        ("1,-1,0", ["GPU-44"]),
        ("NoDevFiles", []),
    ],
)
def test_instances_stand_for_a_split_gpu(tmp_path, environment, given, devices):
    environment(with_nvidia_smi(tmp_path, SPLIT) | ({} if given is None else {VISIBLE: given}))
    assert visible(listed()) == devices


def test_instance_named_beside_its_gpu_is_named_twice(tmp_path, environment):
    environment(with_nvidia_smi(tmp_path, SPLIT) | {VISIBLE: "0,MIG-22"})
    with pytest.raises(LeaseError, match="twice"):
        visible(listed())


def test_names_are_taken_as_they_are_where_nvidia_smi_is_not(tmp_path, environment):
    index = str(10**9 + uuid.uuid4().int % 10**9)  # nobody's lock
    environment(with_nvidia_smi(tmp_path, "") | {"PATH": str(tmp_path / "nothing")})
    assert visible(listed()) == []
    done = leased(os.environ | {VISIBLE: f"0{index}"}, 1)
    for name in (index, queue_name([index])):
        (LOCKS / name).unlink()
    assert done.stdout == f"{index} gpu\n"


def test_gpu_that_torch_cannot_use_ends_the_job(monkeypatch):
    torch = pytest.importorskip("torch")
    from eigencache.calibration.sampler import default_device

    monkeypatch.setenv(DEVICE, "gpu")
    if torch.cuda.is_available():
        assert default_device() == "cuda"
    else:
        with pytest.raises(OSError, match=r"EIGENCACHE_DEVICE=gpu, but torch .* cannot use"):
            default_device()


@pytest.mark.parametrize(("wish", "device"), [("cpu", "cpu"), ("auto", None), (None, None)])
def test_device_is_the_one_decided(monkeypatch, wish, device):
    import torch

    from eigencache.calibration.sampler import default_device

    monkeypatch.delenv(DEVICE, raising=False)
    if wish:
        monkeypatch.setenv(DEVICE, wish)
    assert default_device() == (device or ("cuda" if torch.cuda.is_available() else "cpu"))


def test_misspelt_device_is_refused(monkeypatch):
    from eigencache.calibration.sampler import default_device

    monkeypatch.setenv(DEVICE, "cuda")
    with pytest.raises(ValueError, match="auto, gpu or cpu"):
        default_device()
