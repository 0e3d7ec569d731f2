"""Many prompts: the planner of shards, dry runs of many jobs, the arithmetic of docs/scale.md."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers import copy_of_project
from hypothesis import assume, given
from hypothesis import strategies as st

from reproduction.config import ConfigError
from reproduction.experiment import Experiment, hash_of
from reproduction.prompts import shard_indices
from reproduction.shards import LOADING, LONGEST, MOST, SHARE, plan_shards

ROOT = Path(__file__).parents[2]


def sharding(shards, prompts, num_steps=50, budgets=(7, 9, 12), timed=4):
    return plan_shards(shards, prompts, num_steps, budgets, timed)


SETTINGS = {
    "num_steps": st.integers(2, 100),
    "budgets": st.lists(st.integers(1, 100), min_size=1, max_size=20, unique=True),
    "timed": st.integers(1, 10),
}


@given(prompts=st.integers(1, 3000), shards=st.integers(1, 300), **SETTINGS)
def test_lengths_of_jobs_are_those_of_the_shards(prompts, shards, num_steps, budgets, timed):
    assume(shards <= prompts)
    plan = sharding(shards, prompts, num_steps, budgets, timed)
    lengths = []
    for shard in range(shards):
        indices = shard_indices(prompts, shard, shards)
        lengths.append(num_steps + sum(num_steps for _ in indices))
        timed_runs = num_steps * len(indices[:timed])
        lengths.append(num_steps + timed_runs + sum(sum(budgets) for _ in indices))
    assert (plan.shortest, plan.longest) == (min(lengths), max(lengths))
    assert plan.count == shards


@given(prompts=st.integers(1, 100_000), **SETTINGS)
def test_auto_takes_the_fewest_shards_that_no_job_is_too_long_in(
    prompts, num_steps, budgets, timed
):
    def stated(count):
        return sharding(count, prompts, num_steps, budgets, timed)

    plan = sharding("auto", prompts, num_steps, budgets, timed)
    assert plan.count == 1 or plan.loading <= SHARE
    assert plan.count == 1 or stated(plan.count - 1).longest > LONGEST
    if plan.longest > LONGEST and plan.count < min(prompts, MOST):
        assert stated(plan.count + 1).loading > SHARE


def test_paper_scale_loads_in_under_a_tenth_of_a_job():
    plan = sharding("auto", 200)
    assert plan.count == 2
    assert plan.loading == LOADING / (LOADING + 3050)
    assert "3,050 to 5,050 full steps" in str(plan) and "at most 9.0% of it" in str(plan)
    assert "fewer shards" not in str(plan)
    assert "a job samples several methods" in str(sharding(20, 200))
    assert "fewer shards" in str(sharding(20, 200, budgets=(40, 45, 50, 55, 60, 70)))


@given(prompts=st.integers(1, 3000), shards=st.integers(1, 300), **SETTINGS)
def test_a_job_has_as_many_methods_as_loading_takes(prompts, shards, num_steps, budgets, timed):
    assume(shards <= prompts)
    plan = sharding(shards, prompts, num_steps, budgets, timed)
    few = prompts // shards
    steps, least = few * sum(budgets), LOADING / SHARE - LOADING - (1 + min(timed, few)) * num_steps
    assert plan.together * steps >= least - 1e-6
    assert plan.together == 1 or (plan.together - 1) * steps < least
    labels = [f"m{i}" for i in range(2 * plan.together + 1)]
    groups = plan.groups(labels)
    assert [label for group in groups for label in group] == labels
    assert {*map(len, groups[:-1])} == {plan.together}
    more = plan.groups([*labels, "new"])
    assert more[:-1] == groups[: len(more) - 1]


def test_the_default_experiment_samples_in_few_jobs(monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = Experiment(yaml.safe_load((ROOT / "config.yaml").read_text()))
    labels = list(experiment.config.methods)
    assert experiment.sharding.together == 16
    # The full run waits for no plan, and EigenCache waits longest for its own.
    assert list(experiment.groups.values()) == [["full", *labels[:1]], labels[1:-1], labels[-1:]]
    assert experiment.parts("HiCache") == ["FORA/000", "FORA/001"]
    assert "a job samples several methods" in str(experiment.sharding)


def test_a_budget_that_is_not_known_beforehand_does_not_count(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["methods"] = {"a": {"method": "EigenCache", "psnr": 30}}
    plan = Experiment(config | {"shards": 1}).sharding
    assert plan.shortest == plan.longest == 13 * 50


@pytest.mark.parametrize("shards", ["many", "auto\n", 1001, 0, 1.5, None])
def test_other_shards_are_refused(shards, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    with pytest.raises(ConfigError, match=r"shards: .* is not allowed"):
        Experiment(config | {"shards": shards})


def test_hash_is_of_the_prompts_and_their_order():
    first = hash_of(["a cat", "a dog"])
    assert first == hash_of(iter(["a cat", "a dog"]))
    others = [["a dog", "a cat"], ["a cat", "a dog", "x"], ["a cat"], ["a cata dog"], ["a", "dog"]]
    assert len({first, *map(hash_of, others)}) == 1 + len(others)
    assert len(hash_of(map(str, range(100_000)))) == len(first)


def dry_run(folder: Path, prompts: int, methods: int, budgets: int, shards: int | str):
    """Return what a dry run of so much printed, its seconds, and its peak memory in MB."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"prompts": "prompts.txt", "num_prompts": None, "shards": shards, "figures": {}}
    config["budgets"] = list(range(7, 7 + budgets))
    config["methods"] = {f"T{i}": {"method": "TaylorSeer", "order": 1} for i in range(methods)}
    (folder / "scale.yaml").write_text(yaml.safe_dump(config))
    text = "picture {} of many, of a cat and a dog on a hill beneath a wide sky\n"
    (folder / "prompts.txt").write_text("".join(text.format(i) for i in range(prompts)))
    started = time.monotonic()
    with open(folder / "printed.txt", "w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--configfile",
             "scale.yaml"],
            cwd=folder, stdout=printed, stderr=printed,
            env=os.environ | {"PYTHONPATH": str(folder)},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = (folder / "printed.txt").read_text()
    assert process.returncode == 0, text[-3000:]
    return text, time.monotonic() - started, usage.ru_maxrss / 1024


def counted(printed: str) -> Counter:
    """Return how many jobs of each rule a dry run counts."""
    return Counter(
        {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", printed, re.M)}
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("scale"))


@pytest.mark.slow
def test_jobs_do_not_grow_with_the_prompts(project):
    """A list of the prompts in each job's parameters would be 160 MB at least."""
    few, _, before = dry_run(project, prompts=20_000, methods=20, budgets=1, shards=25)
    many, _, after = dry_run(project, prompts=60_000, methods=20, budgets=1, shards=25)
    assert counted(few)["sample"] == counted(many)["sample"] == 21 * 25
    assert after - before < 60
    assert many.count("shards: 25 for 60,000 prompts") == 1


@pytest.mark.skipif("EIGENCACHE_SCALE" not in os.environ, reason="minutes; set EIGENCACHE_SCALE=1")
@pytest.mark.parametrize("shards", [400, "auto"])
@pytest.mark.parametrize(("methods", "budgets"), [(5, 4), (20, 1)])
def test_a_hundred_thousand_prompts_of_20_runs(project, methods, budgets, shards):
    printed, seconds, memory = dry_run(project, 100_000, methods, budgets, shards)
    jobs = counted(printed)
    print(f"\n{methods} methods x {budgets}, shards: {shards}: {jobs['total']:,} jobs in "
          f"{seconds:.0f} s and {memory:.0f} MB")  # fmt: skip
    assert jobs["sample"] >= 2400
    assert seconds < 120 and memory < 2000


def test_the_page_states_what_its_arithmetic_gives():
    page = (ROOT / "docs/scale.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert not set(lines) - set(page.splitlines()), done.stdout + done.stderr
    assert f"shards: {sharding('auto', 200)}" in page
    assert f"taken for {LOADING} full steps" in page and f"**{LONGEST} full steps**" in page
