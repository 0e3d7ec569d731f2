"""A small experiment, here and then on Slurm through profiles/slurm: tests/slurm/run starts both.

    python tests/slurm/check.py FOLDER

A job is cancelled while it samples. At the end a table says what was checked; the exit code is 1 if
anything of it is wrong.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PARTS = [
    "config.yaml", "data", "eigencache", "envs", "profiles", "pyproject.toml", "Snakefile",
    "workflow",
]  # fmt: skip
LABELS, SHARDS, PROMPTS, BUDGETS = ["full", "FORA", "output", "design"], 2, 4, [3, 4]
GROUPS = 2  # the full run alone, and the three that are planned
# The profile as it is, but for an accounting database, which this Slurm lacks, and for patience.
OPTIONS = [
    "--workflow-profile=profiles/slurm",
    "--slurm-no-account",
    "--slurm-status-command=squeue",
    "--slurm-init-seconds-before-status-checks=3",
    "--seconds-between-status-checks=3",
]
SUBMITTED = {"calibrate": 1, "plan": len(LABELS) - 1, "sample": GROUPS * SHARDS,
             "score": GROUPS * SHARDS, "errors": 1, "costs": 1}  # fmt: skip
GPU_RULES = {"calibrate", "sample", "score", "errors", "costs"}
FIGURES = 10
LIMIT = 1200  # seconds for all jobs on Slurm, 5 times what they take


def project(folder: Path) -> Path:
    """Make a copy of the project with a small experiment, and return its folder."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        folder.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, folder / part)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"experiment": "small", "num_prompts": PROMPTS, "budgets": BUDGETS, "shards": SHARDS}
    config["timed_prompts"] = 1
    config["arguments"] |= {"num_inference_steps": 10, "height": 64, "width": 64}
    config["calibration"]["num_prompts"] = 4
    config["methods"] = {
        "FORA": {"method": "FORA"},
        "output": {"method": "TaylorSeer", "order": 1, "tap": "output"},
        "design": {"method": "EigenCache-design"},
    }
    config["figures"] = {"samples": {"budget": 3, "prompts": [0, 2]}, "plans": {"budget": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def snakemake(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start snakemake in a folder; what it prints goes to `snakemake.txt` there."""
    with open(folder / "snakemake.txt", "w") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments], cwd=folder, stdout=printed,
            stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(folder)},
        )  # fmt: skip


def run_here(folder: Path) -> None:
    """Sample every image of the experiment on this machine, without Slurm."""
    records = [f"results/small/records/{label}.csv" for label in LABELS]
    if snakemake(folder, *records, "--cores", "2").wait() != 0:
        sys.exit(f"the run without Slurm failed:\n{(folder / 'snakemake.txt').read_text()[-3000:]}")


def observe(jobs: dict[str, dict[str, str]]) -> None:
    """Bring what Slurm says of every job up to date, by job id.

    `scontrol` names a job's device (GRES) while it runs and no longer; it is kept.
    """
    printed = subprocess.run(
        ["scontrol", "show", "jobs", "--details", "--oneliner"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for line in printed.splitlines():
        seen = dict(re.findall(r"([\w:/]+)=(\S*)", line))
        if "JobId" in seen:
            job = jobs.setdefault(seen["JobId"], {})
            job.update({key: value for key, value in seen.items() if value or key != "GRES"})


def log(folder: Path, number: str) -> str:
    """Return the text of a job's log, where profiles/README.md says that it is; or nothing."""
    return "".join(path.read_text() for path in folder.glob(f"logs/slurm/rule_*/**/{number}.log"))


def run_on_slurm(folder: Path) -> tuple[int, dict[str, dict[str, str]], str]:
    """Run the experiment, cancelling one job once it has begun to sample.

    Returns:
        The exit code of snakemake, what Slurm said of each job, and which was cancelled.
    """
    jobs, cancelled = {}, ""
    running, deadline = snakemake(folder, *OPTIONS), time.monotonic() + LIMIT
    try:
        while running.poll() is None and time.monotonic() < deadline:
            time.sleep(1)
            observe(jobs)
            for number, job in jobs.items():
                begun = rule(job) == "sample" and "eigencache lease" in log(folder, number)
                if not cancelled and begun and job["JobState"] == "RUNNING":
                    subprocess.run(["scancel", number], check=True)
                    cancelled = number
        observe(jobs)
    finally:
        running.kill()  # on SIGTERM it would wait for its jobs
        running.wait()
    return running.returncode, jobs, cancelled


def rule(job: dict[str, str]) -> str:
    """Return the rule of a job: the executor writes rule_RULE_wildcards_... as its comment."""
    return re.match(r"rule_(.+?)(_wildcards_|$)", job["Comment"])[1]


def images(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each image, by its path."""
    found = folder.glob("results/small/images/**/*.png")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def checks(here: Path, there: Path):
    """Yield what is checked, whether it is right, and what was seen."""
    code, jobs, cancelled = run_on_slurm(there)
    done = {n: job for n, job in jobs.items() if job["JobState"] == "COMPLETED"}
    made = [there / "results/small/summary.csv", *there.glob("figures/small/*.pdf")]
    whole = code == 0 and len(made) == 1 + FIGURES and all(path.is_file() for path in made)
    yield "the workflow ends", whole, f"exit code {code}, {len(made)} tables and figures"

    ran = Counter(map(rule, done.values()))
    yield "through Slurm", ran == SUBMITTED, ", ".join(f"{n} {name}" for name, n in ran.items())

    kinds = {(job["Partition"], job["CPUs/Task"], job.get("JOB_GRES") == "gpu:1",
              rule(job) in GPU_RULES) for job in done.values()}  # fmt: skip
    right = kinds == {("gpu", "4", True, True), ("cpu", "1", False, False)}
    seen = "; ".join(f"{part}: {cpus} CPUs" for part, cpus, *_ in sorted(kinds))
    yield "partition, CPUs, GPU by rule", right, seen

    given = {n: re.findall(r"IDX:(\d)", job.get("GRES", "")) for n, job in done.items()
             if rule(job) in GPU_RULES}  # fmt: skip
    told = {n: re.findall(r"eigencache lease: .*CUDA_VISIBLE_DEVICES=(\S+)", log(there, n))
            for n in given}  # fmt: skip
    right = given == told and all(len(devices) == 1 for devices in told.values())
    seen = f"{sum(given[n] == told[n] for n in given)} of {len(given)} jobs"
    yield "a job uses the device it is given", right, seen

    pairs = [pair for pair in itertools.combinations(given, 2) if together(jobs, *pair)]
    shared = [pair for pair in pairs if told[pair[0]] == told[pair[1]]]
    seen = f"{len(pairs)} pairs ran at once, {len(shared)} on one device"
    yield "jobs at once have distinct devices", bool(pairs) and not shared, seen

    again = [n for n, job in jobs.items() if cancelled and n != cancelled
             and job["Comment"] == jobs[cancelled]["Comment"]]  # fmt: skip
    states = [jobs[n]["JobState"] for n in (cancelled, *again) if n]
    memory = [jobs[n]["MinMemoryNode"] for n in (cancelled, *again) if n]
    sizes = [int(size.removesuffix("M")) for size in memory]
    # The first try asks for 8 GB and the model's weights.
    right = states == ["CANCELLED", "COMPLETED"] and sizes[0] > 8000 and sizes[1] == 2 * sizes[0]
    seen = ", then ".join(f"{s} of {m}" for s, m in zip(states, memory, strict=True))
    yield "a cancelled job is run again", right, seen

    ours, theirs = images(there), images(here)
    expected = PROMPTS * (1 + len(BUDGETS) * (len(LABELS) - 1))
    right = ours == theirs and len(theirs) == expected
    same = sum(ours.get(path) == data for path, data in theirs.items())
    yield "images as without Slurm", right, f"{same} of {expected} byte for byte"


def together(jobs: dict[str, dict[str, str]], a: str, b: str) -> bool:
    """Whether two jobs ran at the same time."""
    latest_start = max(jobs[a]["StartTime"], jobs[b]["StartTime"])
    return latest_start < min(jobs[a]["EndTime"], jobs[b]["EndTime"])


def main(work: Path) -> int:
    here, there = project(work / "here"), project(work / "there")
    print("the experiment without Slurm", flush=True)
    run_here(here)
    print("the experiment on Slurm", flush=True)
    results = list(checks(here, there))
    for what, right, seen in results:
        print(f"{'right' if right else 'WRONG'}  {what:36} {seen}")
    if all(right for _, right, _ in results):
        return 0
    print((there / "snakemake.txt").read_text()[-5000:])
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
