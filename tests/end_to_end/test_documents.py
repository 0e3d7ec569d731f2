"""The documents: commands in them run, paths in them exist, and numbers in them were measured."""

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import warm
from helpers import copy_of_project, program, snakemake

import eigencache
from benchmarks import models, pipelines
from benchmarks.tables import (
    COMPILED,
    FREE,
    GPU,
    GPU_RUN_3,
    GPU_WORKFLOW,
    MOVED,
    ONCE,
    ORACLE,
    PEERS,
    QWEN,
    TABLES,
    TOKENS_VIDEO,
    UNCACHED,
    WAN,
    WHOLE,
    built_in_cells,
    measured,
    waits,
)
from eigencache.cli import COMMANDS
from reproduction.config import Config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("profiles/README.md", "benchmarks/peers/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text()
PROGRAM = "PYTHONPATH=workflow python "
# What these commands do is seen elsewhere: they install, or take longer than a test may.
ELSEWHERE = {
    "pip install": ".ci/run",
    "pytest": ".ci/run",
    "tests/slurm/run": ".ci/run",
    "python3 -m venv": ".ci/run",
    "source": ".ci/run",
    "apt-get install": ".ci/run",
    **dict.fromkeys(("ruff", "snakefmt", "mypy", "python -m build", "sphinx-build"), ".ci/run"),
    "pre-commit install": ".pre-commit-config.yaml",
    "export HF_TOKEN": "tests/workflow/test_hub.py",
    "EIGENCACHE_SCALE=1 pytest": "tests/workflow/test_scale.py",
    "benchmarks/peers/run": "tests/benchmarks/test_peers.py",
    "JOBS=1 benchmarks/peers/run": "tests/benchmarks/test_peers.py",
    "build/peers/cache-dit/bin/python": "tests/benchmarks/test_peers.py",
    "cd results/train/bundle": "tests/training/test_shipping.py",
    "OUT=results FLOW": "tests/training/test_shipping.py",
    "snakemake --report": "tests/end_to_end/test_workflow.py",
    "snakemake --lint": "tests/end_to_end/test_workflow.py",
    **dict.fromkeys(
        ("eigencache push", "eigencache card", "eigencache show user/repo"),
        "tests/runtime/test_sharing.py",
    ),
    "eigencache export": "tests/runtime/test_export.py",
}


def commands() -> list[str]:
    """Return every command of every shell block, each once, without comments."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                parts = re.sub(r"(^|\s)#.*$", "", line).split("&&")
                found += [" ".join(part.split()) for part in parts if part.strip()]
    return list(dict.fromkeys(found))


def starting(*heads: str) -> list[str]:
    return [c for c in commands() if c.startswith(heads) and not c.startswith(tuple(ELSEWHERE))]


def test_commands_are_found():
    assert len(commands()) > 30
    assert "snakemake --cores all --resources gpu=2" in commands()


@pytest.mark.parametrize("command", commands())
def test_every_command_is_run_somewhere(command):
    here = ("snakemake", "eigencache", "python ", PROGRAM, "head ")
    assert command.startswith((*here, *ELSEWHERE)), "add it to ELSEWHERE, with what runs it"


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_what_runs_the_others_is_there(place):
    assert (ROOT / place).is_file()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("documents"))


@pytest.mark.parametrize("command", starting("snakemake"))
def test_snakemake_knows_what_it_would_do(project, command):
    if "slurm" in command and not find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("snakemake-executor-plugin-slurm is not installed")
    printed = snakemake(project, *shlex.split(command)[1:], "-n")
    assert "Job stats:" in printed


@pytest.mark.parametrize("command", starting("python ", PROGRAM))
def test_programs_have_the_options_that_are_stated(command):
    words = shlex.split(command.removeprefix("PYTHONPATH=workflow "))[1:]
    if words[0] == "-c":
        return  # the check for a GPU, which is right on any machine
    asked = program(*(words[:2] if words[0] == "-m" else words[:1]), "--help")
    assert asked.returncode == 0, asked.stderr
    assert [w for w in words if w.startswith("--") and w not in asked.stdout] == []


def test_commands_of_the_guides_make_and_score_images(project):
    """One after the other, at half the width; `eigencache` may not be on the PATH of a test."""
    pages = [(ROOT / f"docs/{name}.md").read_text() for name in ("accelerate", "calibrate")]
    blocks = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page, re.S)]
    code = re.sub("(height|width) 128", r"\1 64", "".join(blocks))
    head = f'eigencache() {{ "{warm.python()}" -m eigencache.cli "$@"; }}\nset -e\n'
    environment = os.environ | {"PYTHONPATH": str(project), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", head + code],
        cwd=project, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    scores = pd.read_csv(project / "scores.csv")
    assert len(scores) == 4 and (scores["psnr"] > 30).all()
    for folder in ("built-in", "hicache", "steps-28"):
        assert len([*(project / folder).glob("*.png")]) == 4
    here = " ".join(" ".join(page.replace("\\\n", " ").split()) for page in pages)
    assert [command for command in starting("eigencache") if command not in here] == []


# ---- Python

BLOCK = re.compile(r"(?:<!-- parsed: (?P<why>.+?) -->\n)?```python\n(?P<code>.*?)```", re.S)
# The first defines `pipe`, `prompts`, `arguments` and `plan`, which the others use.
GUIDES = ("accelerate", "calibrate", "sharing", "memory", "guidance", "compile", "quantisation",
          "edit-and-video")  # fmt: skip
# Pages whose Python other tests run.
OTHERWISE = {
    "README.md": "test_the_readmes_python_prints_what_was_saved",
    "docs/compare.md": "test_the_worked_method_is_a_method_and_forecasts_a_line",
    "docs/scale.md": "tests/workflow/test_scale.py",
}


def blocks(document: Path) -> list[re.Match]:
    return [*BLOCK.finditer(document.read_text())]


def quick(code: str, steps: int = 50, full_steps: int = 9) -> str:
    """Return code that takes four prompts in place of eight, such steps, and half the width."""
    changes = {
        "prompts[:8]": "prompts[:4]",
        "full_steps=9": f"full_steps={full_steps}",
        '_steps": 50': f'_steps": {steps}',
        '"height": 128, "width": 128': '"height": 64, "width": 64',
        "height=128, width=128": "height=64, width=64",
    }
    for long, short in changes.items():
        code = code.replace(long, short)
    return code


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_is_right_as_far_as_it_can_be_read(document):
    """It parses, its names of the package exist, and if nothing runs it, it says why."""
    for block in blocks(document):
        tree = ast.parse(block["code"])
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "eigencache":
                assert node.attr in eigencache.__all__
            if isinstance(node, ast.ImportFrom) and node.module.startswith("eigencache"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        runs = document.stem in GUIDES or document.relative_to(ROOT).as_posix() in OTHERWISE
        assert runs or block["why"], "no test runs it"


def test_python_of_the_guides_runs(project):
    """Page after page in one process; what a page defines is forgotten after it."""
    pages = {
        name: [quick(b["code"], 12, 4) for b in blocks(ROOT / f"docs/{name}.md") if not b["why"]]
        for name in GUIDES
    }
    lines = ["known = {}"]
    for name, codes in pages.items():
        lines.append(f"names = dict(known); print({name!r})")
        lines += [f"exec(compile({code!r}, {name!r}, 'exec'), names)" for code in codes]
        if name == GUIDES[0]:
            lines.append("known = names")
    done = program("-c", "\n".join(lines), folder=project)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert sum(map(len, pages.values())) >= 7


def test_the_readmes_python_prints_what_was_saved(project):
    code = quick("".join(block["code"] for block in blocks(ROOT / "README.md")))
    done = program("-c", code, folder=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "9 steps in full, 41 skipped" in done.stdout


WORKED = """
METHODS = dict(METHODS)
METHODS["Damped"] = Method(Interval, Damped, "output", "here")
timesteps, line = np.linspace(1000, 20, 50), np.arange(50.0)
plan = METHODS["Damped"].plan(9, timesteps, damping=1.0)
np.testing.assert_allclose((plan.weights @ line)[~plan.full], line[~plan.full])
tried = make_plan(Interval(full_steps=9), Damped(1.0), timesteps)
np.testing.assert_array_equal(tried.weights, plan.weights)
"""


def test_the_worked_method_is_a_method_and_forecasts_a_line():
    page = (ROOT / "docs/compare.md").read_text()
    code = re.search(r"```python\n(from dataclasses.*?)```", page, re.S)[1]
    assert len(code.splitlines()) < 30
    imports = (
        "from eigencache.methods import METHODS, Method, make_plan\n"
        "from eigencache.schedules import Interval\n"
    )
    done = program("-c", imports + code + WORKED)
    assert done.returncode == 0, done.stderr[-3000:]


# What runs make, or fetch.
MADE = ("results/", "figures/", "models/", "build/", "logs/", "data/prompts/fetched/")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(document):
    text = re.sub(r"<!--.*?-->", "", document.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link
    tops = "|".join(path.name for path in ROOT.iterdir() if not path.name.startswith("."))
    for path in re.findall(rf"`((?:{tops})/[\w./-]+)`", text):
        made = path.startswith(MADE)
        assert made or (ROOT / path).exists(), path


def test_environments_of_the_documents_are_those_that_exist():
    named = set(re.findall(r"`(envs/[\w.]+)`", (ROOT / "docs/setup.md").read_text()))
    assert named == {f"envs/{path.name}" for path in (ROOT / "envs").iterdir()}


# ---- Numbers


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_files(name):
    document, make = TABLES[name]
    assert make() in (ROOT / document).read_text(), f"python -m benchmarks.tables {name}"


def of_file(quantity, *case, scale=1.0, **more):
    """Return a number of a GPU's file in the unit that a document states."""
    return lambda: scale * measured(quantity, *case, **more)


FULL = "full_step_seconds"
MEMORY = "peak_memory_mb"
AGAIN, TAYLOR, DESIGN = "uncached, again", "TaylorSeer-1", "EigenCache-design"
RUN_2 = {"image_tokens": 1024, "full_steps": 7}  # 512 x 512 pixels
RUN_3 = {"file": GPU_RUN_3}
SMALLER = {"image_tokens": 1024} | RUN_3
PROFILED, BLOCKS = SMALLER | {"num_steps": 6}, SMALLER | {"compiled": COMPILED}
PROFILED_BLOCKS = BLOCKS | {"num_steps": 6}
COMPILED_WHOLE, VIDEO = (
    RUN_3 | {"compiled": WHOLE},
    RUN_3 | {"model": WAN, "image_tokens": TOKENS_VIDEO},
)


def full_steps(count):
    """Return the seconds of so many full steps."""
    return lambda: count * measured(FULL, UNCACHED)


def host_at_most():
    """Return the milliseconds that the host adds at most to 50 steps at 512 pixels, 7 in full."""
    skipped = measured("skipped_host_step_seconds", **SMALLER)
    return 1e3 * (43 * skipped + 7 * measured("added_host_seconds", **SMALLER))


def skipped_percent(**case):
    """Return the share of the loop that skipped steps take, in percent."""
    return lambda: 100 * (1 - measured("share_of_loop_in_full_steps", **case))


def rest(file):
    """Return the seconds of a calibration on one prompt outside the network and the fit."""
    case = {"method": DESIGN, "file": file}
    return measured("between_calls_seconds", **case) - measured("fit_seconds", **case)


@functools.cache
def video_operations():
    """Return the operations of a full step of Wan 2.2 TI2V-5B at 33 frames."""
    return models.wan(48, 9, 44, 80, models.WAN_5B).counted()[1]


def waited(gpu, prompts):
    """Return the number of an open loop's wait in the table of waits."""
    titles, _, *rows = waits().splitlines()
    column = [title.strip().split(",")[0] for title in titles.split("|")].index(gpu)
    (row,) = (row.split("|") for row in rows if f"open loop, {prompts} prompts" in row)
    return float(row[column].split()[0])


# The methods that run from the code of others and compute less than half of the network.
PEER_ROWS = pd.read_csv(PEERS)
RELEASED = PEER_ROWS.loc[
    PEER_ROWS["source"].str.contains("diffusers|cache-dit") & (PEER_ROWS["compute"] < 0.5), "method"
].unique()


BUDGETS = (5, 7, 9, 13)
MARGINS = " / ".join([r"([\d.]+)"] * len(BUDGETS))


def above(full_steps, methods, ours="EigenCache"):
    """Return the dB by which a method of ours is above the best of some methods."""
    psnr = PEER_ROWS[PEER_ROWS["budget"] == full_steps].groupby("method")["psnr"].max()
    return psnr[ours] - psnr[psnr.index.isin(methods)].max()


FITTED = ("BNS from our design", "BNS from Euler")


def of_peers(full_steps, method, column="psnr"):
    """Return a cell of the row of a method at a budget; `calls` are those of its fit."""
    row = PEER_ROWS[(PEER_ROWS["budget"] == full_steps) & (PEER_ROWS["method"] == method)].iloc[0]
    calls = row["fit_calls"] + row["fit_backward_calls"]
    return calls if column == "calls" else row[column]


PUBLISHED = ("FORA", "TaylorSeer-1", "HiCache")


def of_main(method, full_steps, file="main"):
    """Return the PSNR of a method of the main job, or of another file of its columns."""
    table = pd.read_csv(ROOT / f"data/benchmarks/{file}.csv")
    return table.set_index(["method", "full_steps"])["psnr"][method, full_steps]


of_methods = functools.partial(of_main, file="methods")


def of_ablation(label):
    """Return the PSNR of a row of the ablation."""
    table = pd.read_csv(ROOT / "data/benchmarks/ablation.csv")
    return table.drop_duplicates("label").set_index("label")["psnr"][label]


PEERS_20 = pd.read_csv(PEERS.with_name("peers_20.csv")).set_index(["method", "budget"])
BEST_AT_20 = PEERS_20["psnr"].xs(20, level=1, drop_level=False).idxmax()


def at_20(method, column, budget=20):
    """Return a cell of the table that compares the closed loop with solvers of 20 network calls."""
    return PEERS_20[column][method, budget]


def dearer(full_steps):
    """Return how many times the calls of the closed loop BNS from our design took."""
    return of_peers(full_steps, FITTED[0], "calls") / of_peers(full_steps, "EigenCache", "calls")


def extreme(kind, methods, ours):
    """Return the least or the largest of these margins."""
    return kind(above(budget, methods, ours) for budget in BUDGETS)


# Each sentence with numbers of the GPU's file, in the order in which it states them.
SENTENCES = [
    (
        "README.md",
        r"memory grows by (\d+) MB from ([\d.]+) GB",
        [of_file("added_memory_mb", full_steps=9), of_file(MEMORY, UNCACHED, scale=1e-3)],
    ),
    (
        "docs/speed.md",
        r"A skipped step\*\* takes ([\d.]+) ms .*takes (\d+) ms\. "
        r".* adds ([\d.]+) ms of host time to it, ([\d.]+) %",
        [
            of_file("skipped_step_mean_seconds", full_steps=9, scale=1e3),
            of_file(FULL, UNCACHED, scale=1e3),
            of_file("added_host_seconds", scale=1e3), of_file("added_host_share", scale=100),
        ],
    ),
    (
        "docs/speed.md",
        r"adds ([\d.]+) MB to a peak of ([\d,]+) MB",
        [of_file("added_memory_mb", full_steps=9), of_file(MEMORY, UNCACHED)],
    ),
    (
        "docs/speed.md",
        r"at 512 pixels, it took ([\d.]+) ms, which is ([\d.]+) % .* \(([\d.]+) % with blocks",
        [
            of_file("added_host_seconds", scale=1e3, **SMALLER),
            of_file("added_host_share", scale=100, **SMALLER),
            of_file("added_host_share", scale=100, **BLOCKS),
        ],
    ),
    (
        "docs/speed.md",
        r"eager: ([\d.]+) of the ideal in run 2, ([\d.]+) in run 3\*\*.* took ([\d.]+) s and "
        r"([\d.]+) s: .* computes for ([\d.]+) ms of it, in (\d+) launches, .* needs ([\d.]+) ms, "
        r"of which ([\d.]+) ms are .* for ([\d.]+) of ([\d.]+) ms, .* launches ([\d,]+) kernels.*"
        r"With the ([\d.]+) ms that .* this is ([\d.]+) ms at most, ([\d.]+) % of",
        [
            of_file("share_of_ideal", **RUN_2), of_file("share_of_ideal_by_both", **SMALLER),
            of_file("loop_seconds", UNCACHED, **SMALLER),
            of_file("loop_seconds", AGAIN, **SMALLER),
            of_file("skipped_device_busy_seconds", scale=1e3, **PROFILED),
            of_file("skipped_launches", **PROFILED),
            of_file("skipped_host_step_seconds", scale=1e3, **SMALLER),
            of_file("uncached_host_step_seconds", scale=1e3, **SMALLER),
            of_file("full_device_busy_seconds", UNCACHED, scale=1e3, **PROFILED),
            of_file(FULL, UNCACHED, scale=1e3, **SMALLER),
            of_file("full_launches", UNCACHED, **PROFILED),
            of_file("added_host_seconds", scale=1e3, **SMALLER),
            host_at_most,
            lambda: host_at_most() / 10 / measured("loop_seconds", **SMALLER),
        ],
    ),
    (
        "docs/speed.md",
        r"compiled: ([\d.]+) of the ideal in run 3\*\*, .* and ([\d.]+) in run 2\..* took "
        r"([\d.]+) ms with the cache, and ([\d.]+) ms and ([\d.]+) ms in .* for ([\d.]+) ms of it "
        r"and nothing .* launch ([\d,]+) kernels.* needs for it, ([\d.]+) ms, of which the GPU "
        r"computes for ([\d.]+) ms\. All 43 are ([\d.]+) % .* the same, ([\d.]+) ms each and "
        r"([\d.]+) % .* took ([\d.]+) ms with the cache and ([\d.]+) ms without it, so that "
        r"([\d.]+) compares .* it adds ([\d.]+) ms .* needed (\d+) ms .* and (\d+) ms right .* "
        r"of run 3 took ([\d.]+) ms: .* needed ([\d.]+) ms for one",
        [
            of_file("share_of_ideal_by_both", **BLOCKS),
            of_file("share_of_ideal", compiled=COMPILED, **RUN_2),
            of_file(FULL, scale=1e3, **BLOCKS), of_file(FULL, UNCACHED, scale=1e3, **BLOCKS),
            of_file(FULL, AGAIN, scale=1e3, **BLOCKS),
            of_file("full_device_busy_seconds", UNCACHED, scale=1e3, **PROFILED_BLOCKS),
            of_file("full_launches", UNCACHED, **PROFILED_BLOCKS),
            of_file("skipped_step_seconds", scale=1e3, **BLOCKS),
            of_file("skipped_device_busy_seconds", scale=1e3, **PROFILED_BLOCKS),
            skipped_percent(**BLOCKS),
            of_file("skipped_step_seconds", scale=1e3, compiled=COMPILED, **RUN_2),
            skipped_percent(compiled=COMPILED, **RUN_2),
            of_file(FULL, scale=1e3, compiled=COMPILED, **RUN_2),
            of_file(FULL, UNCACHED, scale=1e3, compiled=COMPILED, image_tokens=1024),
            of_file("share_of_ideal", compiled=COMPILED, **RUN_2),
            of_file("added_host_seconds", scale=1e3, **BLOCKS),
            of_file("full_host_seconds", UNCACHED, scale=1e3, **PROFILED_BLOCKS),
            of_file("full_host_seconds", scale=1e3, **PROFILED_BLOCKS),
            of_file("skipped_step_seconds", scale=1e3, **BLOCKS),
            of_file("skipped_host_step_seconds", scale=1e3, **BLOCKS),
        ],
    ),
    *(
        (
            document, sentence,
            [
                of_file(FULL, UNCACHED, scale=1e3, **COMPILED_WHOLE),
                *more,
                of_file("first_three_steps_seconds", UNCACHED, **COMPILED_WHOLE),
                of_file("first_three_steps_seconds", UNCACHED, compiled=COMPILED),
            ],
        )
        for document, sentence, more in (
            (
                "docs/speed.md",
                r"blocks compiled: (\d+) ms and (\d+) ms a .* took (\d+) s, in place of (\d+) s",
                [of_file(FULL, UNCACHED, scale=1e3, compiled=COMPILED)],
            ),
            ("docs/compile.md", r"blocks, (\d+) ms a .* take (\d+) s in place of (\d+) s", []),
        )
    ),
    (
        "docs/speed.md",
        r"TI2V-5B: ([\d.]+) of the ideal; .* a full step takes (\d+) ms\. .* took ([\d.]+) ms each "
        r"on average, ([\d.]+) % .* grows by (\d+) MB from ([\d,]+) MB, ([\d.]+) %",
        [
            of_file("share_of_ideal", **VIDEO), of_file(FULL, UNCACHED, scale=1e3, **VIDEO),
            of_file("skipped_step_mean_seconds", scale=1e3, **VIDEO), skipped_percent(**VIDEO),
            of_file("added_memory_mb", **VIDEO), of_file(MEMORY, UNCACHED, **VIDEO),
            of_file("added_memory_share", scale=100, **VIDEO),
        ],
    ),
    (
        "docs/models.md",
        r"two calls, takes ([\d.]+) s eager, and its transformer peaked at ([\d.]+) GB, measured; "
        r"its ([\d.]+)e12 FLOP are thus done at (\d+) %",
        [
            of_file(FULL, UNCACHED, **VIDEO), of_file(MEMORY, UNCACHED, scale=1e-3, **VIDEO),
            lambda: video_operations() / 1e12,
            lambda: 100 * video_operations() / models.PEAK / measured(FULL, UNCACHED, **VIDEO),
        ],
    ),
    (
        "docs/speed.md",
        r"on one prompt took ([\d.]+) s: ([\d.]+) s in (\d+) calls of the network, ([\d.]+) s to "
        r"fit .* and ([\d.]+) s for the rest.* = (\d+) s, and 32 take (\d+) s.* In run 2 it was "
        r"([\d.]+) s, .* calls times ([\d.]+) s; .*peak as the H200.* ([\d.]+) and ([\d.]+) min",
        [
            of_file("calibrate_1_prompt_seconds", DESIGN, **RUN_3),
            of_file("network_seconds", DESIGN, **RUN_3), of_file("network_calls", DESIGN, **RUN_3),
            of_file("fit_seconds", DESIGN, **RUN_3), lambda: rest(GPU_RUN_3),
            of_file("wait_8_prompts_seconds", DESIGN, **RUN_3),
            of_file("wait_32_prompts_seconds", DESIGN, **RUN_3), lambda: rest(GPU),
            of_file("network_seconds", DESIGN, scale=1 / 50, **RUN_3),
            of_file("a100_estimate_8_prompts_seconds", DESIGN, scale=1 / 60, **RUN_3),
            of_file("a100_estimate_32_prompts_seconds", DESIGN, scale=1 / 60, **RUN_3),
        ],
    ),
    ("README.md", r"(\d+) s for 8 prompts", [of_file("wait_8_prompts_seconds", DESIGN, **RUN_3)]),
    (
        "docs/calibrate.md",
        r"this is ([\d.]+) s on an H200; .* ([\d.]+) s on an H100 and ([\d.]+) min on an",
        [
            lambda: waited("H200", 8), lambda: waited("H100", 8), lambda: waited("A100", 8),
        ],
    ),
    (
        "docs/models.md",
        r"step of Qwen-Image takes ([\d.]+) s eager, and its transformer peaked at ([\d.]+) GB",
        [
            of_file(FULL, UNCACHED, model=QWEN, **RUN_3),
            of_file(MEMORY, UNCACHED, scale=1e-3, model=QWEN, **RUN_3),
        ],
    ),
    (
        "README.md", rf"the closed loop is {MARGINS} dB above",
        [functools.partial(above, budget, RELEASED) for budget in BUDGETS],
    ),
    (
        "README.md",
        r"OLSS, fitted to uncached runs, is ([\d.]+) to ([\d.]+) dB below it",
        [functools.partial(extreme, kind, ["OLSS"], "EigenCache") for kind in (min, max)],
    ),
    ("README.md", r"the best of (\d+) solvers and caches", [lambda: len(RELEASED)]),
    (
        "README.md", r"for (\d+) to (\d+) times the network calls",
        [functools.partial(dearer, budget) for budget in (9, 5)],
    ),
    (
        "docs/results.md",
        r"from our design has ([\d.]+) dB, BNS from Euler ([\d.]+), DSS ([\d.]+) and the closed "
        r"loop ([\d.]+).* from our design has ([\d.]+) and from Euler ([\d.]+), where the closed "
        r"loop has ([\d.]+)\..* took ([\d,]+) network calls at 5 and ([\d,]+) at 9, .* loop "
        r"([\d,]+) and ([\d,]+)\.",
        [
            *(functools.partial(of_peers, 5, m) for m in (*FITTED, "DSS", "EigenCache")),
            *(functools.partial(of_peers, 9, m) for m in (*FITTED, "EigenCache")),
            *(
                functools.partial(of_peers, budget, m, "calls")
                for m in (FITTED[0], "EigenCache") for budget in (5, 9)
            ),
        ],
    ),
    (
        "docs/results.md",
        r"At 7 full steps BNS from our design has ([\d.]+), from Euler ([\d.]+), DSS ([\d.]+) and "
        r"the closed loop ([\d.]+); at 13 they have ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+)\.",
        [
            functools.partial(of_peers, budget, m)
            for budget in (7, 13) for m in (*FITTED, "DSS", "EigenCache")
        ],
    ),
    (
        "docs/results.md",
        r"does not extrapolate, has ([\d.]+) / ([\d.]+) / ([\d.]+) / ([\d.]+)\.",
        [functools.partial(of_peers, budget, "BudCache") for budget in BUDGETS],
    ),
    (
        "docs/results.md", r"noise levels \(\*grid\*\) has ([\d.]+) at 7",
        [functools.partial(of_peers, 7, "BNS from our design, grid")],
    ),
    (
        "docs/results.md",
        r"is SeaCache with ([\d.]+) dB, and the best solver Heun, with (\d+) network calls and "
        r"([\d.]+) dB\. The closed loop has ([\d.]+) / ([\d.]+) / ([\d.]+) / ([\d.]+) dB with "
        r"8 / 10 / 11 / 12",
        [
            lambda: PEERS_20["psnr"][BEST_AT_20], lambda: at_20("Heun", "full_steps"),
            lambda: at_20("Heun", "psnr"),
            *(functools.partial(at_20, "EigenCache", "psnr", n) for n in (8, 10, 11, 12)),
        ],
    ),
    (
        "docs/results.md", r"Free noise levels are worth ([\d.]+) dB to it at 7 full steps",
        [lambda: of_peers(7, FITTED[0]) - of_peers(7, f"{FITTED[0]}, grid")],
    ),
    (
        "docs/results.md",
        r"At 12 it is ([\d.]+) dB above the best method of others, and the open loop ([\d.]+)\.",
        [
            lambda m=m: of_main(m, 12) - max(of_main(peer, 12) for peer in PUBLISHED)
            for m in ("EigenCache", "EigenCache-design")
        ],
    ),
    (
        "docs/results.md", r"Without that measurement it loses ([\d.]+) dB at 9 full steps",
        [lambda: of_ablation("design") - of_ablation("response-0")],
    ),
    (
        "docs/accelerate.md",
        r"of 16 prompts gives ([\d.]+) dB of PSNR at 9 of 50 steps, where plain sampling with 9 "
        r"steps gives ([\d.]+)\..*and gives ([\d.]+) dB\. \[Calibrate",
        [
            functools.partial(of_main, method, 9)
            for method in ("EigenCache-design", "fewer-steps", "EigenCache")
        ],
    ),
    (
        "docs/results.md",
        r"ClusCa gains ([\d.]+) dB on TaylorSeer at 5 full steps, ([\d.]+) at 7",
        [
            lambda n=n: of_methods("ClusCa", n) - of_methods("TaylorSeer-1", n)
            for n in (5, 7)
        ],
    ),
    (
        "README.md", r"and is ([\d.]+) dB below it at 9 and ([\d.]+) at 13; DSS is "
        r"([\d.]+) and ([\d.]+) dB below it there",
        [functools.partial(above, n, [m]) for m in (FITTED[0], "DSS") for n in (9, 13)],
    ),
    (
        "docs/results.md", rf"equal to BNS. It is {MARGINS} dB above the best method",
        [functools.partial(above, budget, RELEASED) for budget in BUDGETS],
    ),
    (
        "docs/results.md", rf"best at every budget: {MARGINS} dB above OLSS",
        [functools.partial(above, budget, ["OLSS"], "EigenCache-design") for budget in BUDGETS],
    ),
    (
        "docs/results.md", rf"OLSS is {MARGINS} dB below the closed loop",
        [functools.partial(above, budget, ["OLSS"]) for budget in BUDGETS],
    ),
    (
        "docs/models.md",
        r"\| H200 \| ([\d.]+) s \| ([\d.]+) s \| measured",
        [of_file(FULL, UNCACHED), of_file(FULL, UNCACHED, compiled=COMPILED)],
    ),
    ("docs/models.md", r"alone peaked at ([\d.]+) GB", [of_file(MEMORY, UNCACHED, scale=1e-3)]),
    (
        "docs/models.md",
        r"the peak grew by ([\d.]+) MB.*order 1 added ([\d.]+) GB.*"
        r"added (\d+) MB, (\d+) MB and ([\d.]+) GB",
        [
            of_file("added_memory_mb", full_steps=9),
            of_file("added_memory_mb", TAYLOR, tap="modules", scale=1e-3),
            of_file("added_memory_mb", TAYLOR, tap="hidden"),
            of_file("added_memory_mb", TAYLOR, tap="delta"),
            of_file("added_memory_mb", TAYLOR, tap="blocks", scale=1e-3),
        ],
    ),
    ("docs/models.md", r"142,000, or ([\d.]+) hours on", [lambda: full_steps(142_000)() / 3600]),
    (
        "docs/models.md",
        r"modules tap \((\d+) ms each",
        [of_file("skipped_step_seconds", TAYLOR, tap="modules", scale=1e3)],
    ),
    ("docs/scale.md", r"FULL = ([\d.]+) ", [of_file(FULL, UNCACHED)]),
    (
        "docs/scale.md",
        r"SKIPPED = ([\d.]+) ",
        [of_file("skipped_step_seconds", TAYLOR, tap="modules")],
    ),
]  # fmt: skip


@pytest.mark.parametrize("document, sentence, numbers", SENTENCES)
def test_numbers_of_a_gpu_were_measured(document, sentence, numbers):
    """Every number is that of the file, rounded to the digits that the document has."""
    words = " ".join((ROOT / document).read_text().split())
    stated = re.search(sentence, words)
    assert stated, sentence
    for text, number in zip(stated.groups(), numbers, strict=True):
        digits = len(text.partition(".")[2])
        assert text == f"{number():,.{digits}f}"


def test_the_gpu_and_its_libraries_are_those_of_the_file():
    rows = pd.concat(map(pd.read_csv, (GPU, GPU_RUN_3, GPU_WORKFLOW)))
    text = " ".join((ROOT / "docs/speed.md").read_text().split())
    (device,), (driver,), (torch,) = (rows[c].unique() for c in ("device", "driver", "torch"))
    release, cuda = torch.split("+cu")
    assert f"one {device} (driver {driver}, torch {release.rpartition('.')[0]} with CUDA " in text
    assert f"CUDA {cuda[:-1]}.{cuda[-1]}, diffusers {rows['diffusers'].unique()[0]})" in text
    assert f"one {device}: " in " ".join(README.split())


def gains(method, other=None, **cells):
    """Return how far a method of built-in.csv is above another, or the best peer, cell by cell."""
    table = built_in_cells().dropna(subset=method)
    for name, value in cells.items():
        table = table[table.index.get_level_values(name).isin(np.atleast_1d(value))]
    return table[method] - table[other or "best"]


def test_what_is_said_of_built_in_plans_was_measured():
    built_in, one, plain = "EigenCache built in", "EigenCache-design, one image", "fewer steps"
    readme, results, accelerate, loop, plans = (
        " ".join((ROOT / name).read_text().split())
        for name in (
            "README.md", "docs/results.md", "docs/accelerate.md", "docs/closed-loop.md",
            "docs/plans.md",
        )
    )  # fmt: skip
    cell = {"model": "emoji-flux", "guidance": 3, "steps": 50, "full_steps": 9}
    first, second = (float(gains(m, plain, **cell).iloc[0]) for m in (built_in, one))
    assert f"gains {first:.1f} dB on plain sampling with 9 steps, a plan of one" in readme
    assert f"a plan of one prompt gains {second:.1f} dB" in readme
    both = [gains(method, plain) for method in (built_in, one)]
    means = " and ".join(f"{found.mean():.1f}" for found in both)
    worse = " and ".join(str((found < 0).sum()) for found in both)
    count = len(both[0])
    said = (
        f"means are {means} dB, and the plans are worse than plain sampling in {worse} of {count}"
    )
    assert said in readme
    assert f"in all but {(both[0] < 0).sum()} of {count} cases" in plans
    above, image, now = gains(built_in), gains(one), both[0]
    kinds = above.index.get_level_values("model").str.rpartition("-").get_level_values(2)
    noise, v = kinds == "epsilon", kinds == "v"
    flow = ~(noise | v)
    emoji = above[above.index.get_level_values("model") == "emoji-flux"]
    assert (
        f"mean is {above.mean():.1f} dB above it, and {(above < 0).sum()} of {count} cells are "
        f"below, {(emoji < 0).sum()} of them of emoji-flux, by up to {-above.min():.1f} dB."
        in results
    )
    cells = built_in_cells().dropna(subset=built_in)
    of_all = cells[built_in] - cells["best of all"]
    assert f"it is {of_all.mean():.1f} dB and {(of_all < 0).sum()} cells." in results
    theirs = cells.filter(like="cache-dit, ").max(axis=1)
    alike = "EigenCache built in, compute of cache-dit"
    with_more = (cells[alike] - theirs).dropna()
    beside = (cells[built_in] - theirs).dropna()
    lost = with_more[with_more < 0].index.get_level_values("model")
    assert (
        f"are {beside.mean():.1f} dB above the best of the three in the mean, and below it in "
        f"{(beside < 0).sum()} of {len(beside)} cells; with as many more full steps as that first "
        f"block makes, {with_more.mean():.1f} dB, and below it in {len(lost)}, all of "
        "`shapes-flow`." in results
    )
    assert set(lost) == {"shapes-flow"}
    shares = [100 * (full + (50 - full) / blocks) / 50 for full, blocks in ((9, 4), (9, 10))]
    assert (
        f"{shares[0]:.0f} % of the blocks of the small models, which have four, and "
        f"{shares[1]:.0f} % of those of emoji-flux" in results
    )
    assert (
        f"Plans of one image are {image.mean():.1f} dB above it, and below it in "
        f"{(image < 0).sum()} cells, by up to {-image.min():.1f} dB." in results
    )
    assert (
        f"It does in {(now < 0).sum()} cells, by up to {-now.min():.1f} dB, all with 5 of 50"
        in results
    )
    assert {key[1:] for key in now[now < 0].index} == {(5, 50, 5)}
    moved = gains(built_in + MOVED)
    assert (
        f"gains {(above[~v] - moved).mean():.1f} dB on the {len(moved)} cells of flow and epsilon, "
        f"on which it was chosen, and leaves {(above[~v] < 0).sum()} of them below the best peer "
        f"in place of {(moved < 0).sum()}." in results
    )
    assert f"the plans are {above[v].mean():.1f} dB above the best peer in the mean" in results
    former = gains(one + FREE, plain).reindex(now.index).dropna()
    assert (
        f"worse than plain sampling in {(former < 0).sum()} of {len(former)} cells, by up to "
        f"{-former.min():.1f} dB" in loop
    )
    assert image[flow].min() > 0
    assert (
        f"are {image[flow].mean():.1f} dB above the best peer in the mean, and below it in no "
        f"cell; those of the noise {image[noise].mean():.1f} dB, and those of v "
        f"{image[v].mean():.1f} dB." in results
    )
    twice = image - gains(one + ONCE)
    assert (
        f"gains {twice[~v].mean():.1f} dB on the {(~v).sum()} cells of flow and epsilon and "
        f"{twice[v].mean():.1f} dB on those of v" in results
    )
    assert twice["emoji-flux"].mean().round(1) == 0
    every = "EigenCache built in, all scales"
    lost = [gains(built_in + MOVED, every, guidance=scale).mean() for scale in (1, 3, 5)]
    assert f"plans at guidance 1 were {lost[0]:.1f} dB worse than *steps moved*" in results
    assert f"the two differed by at most {np.abs(lost[1:]).max():.1f} dB in the mean" in results
    means = [gains(built_in, plain, guidance=scale).mean() for scale in (1, 3, 5)]
    assert round(means[1]) == round(means[2])
    assert (
        f"{means[0]:.0f} dB better than plain sampling with as few steps in the mean without "
        f"guidance, and {means[1]:.0f} dB at guidance 3 and 5; it was worse in "
        f"{(now < 0).sum()} of {count} cases, all with 5 of 50 steps at guidance 5" in accelerate
    )


def test_what_is_said_of_plans_at_other_guidance_was_measured():
    table = pd.read_csv(ROOT / "data/benchmarks/guidance.csv", dtype={"made_at": str})
    psnr = table.set_index(["method", "made_at", "used_at"])["psnr"]
    closed, design = psnr["EigenCache"], psnr["EigenCache-design"]
    text = " ".join((ROOT / "docs/guidance.md").read_text().split())
    three, one = (closed[own, at] - closed["1 3", at] for own, at in (("3", 3), ("1", 1)))
    assert f"at 1 and 3 gives up {three:.1f} dB at 3 and {one:.1f} dB at 1" in text
    below = (design - closed)[lambda x: x > 0]
    assert [*below.index] == [("3", 1)]
    assert f"but for {below.iloc[0]:.1f} dB where it was made at 3 and is used at 1" in text
    worth = design - psnr["EigenCache-design, undisturbed"]
    own = [worth[key] for key in (("1", 1), ("3", 3), ("1 3", 1), ("1 3", 3))]
    assert f"is worth {min(own):.1f} to {max(own):.1f} dB" in text
    assert f"it costs up to {-worth.min():.1f} dB" in text
    published = psnr["HiCache"].xs(5, level=1).max(), psnr["TaylorSeer"].xs(5, level=1).max()
    made_at_1 = max(psnr[method, "1", 5] for method in psnr.index.unique(0)[:5])
    assert made_at_1 < min(published) and max(published) < closed["3", 5]
    made = psnr.reset_index("made_at", drop=True)
    built_in = made["EigenCache built in"]
    assert (built_in > made["HiCache"]).all() and (built_in > made["TaylorSeer"]).all()
    assert built_in[5] == psnr.xs(5, level="used_at").max()
    lost = {
        (m, r): closed[m] - psnr[f"EigenCache, ridge {r}", m]
        for m in ("1", "3", "1 3")
        for r in ("0.1", "1")
    }
    others = [
        at[[u for u in at.index if f"{u:g}" not in m.split()]].mean() for (m, _), at in lost.items()
    ]
    assert f"by {min(others):.1f} to {max(others):.1f} dB in the mean of each row" in text
    assert f"made at 1, a plan gains {-lost['1', '0.1'][1]:.1f} dB there with 0.1" in text
    assert f"It costs {-lost['3', '1'][1]:.1f} dB in one place" in text
    assert all(at.mean() > 0 for at in lost.values())


def test_what_is_said_of_plans_that_were_carried_over_was_measured():
    table = pd.read_csv(ROOT / "data/benchmarks/carry_over.csv")
    table["lost"] = table["psnr_own"] - table["psnr"]
    plain = table["psnr"] - table["psnr_fewer_steps"]
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    here = "128 px"
    alike = table["used_on"].isin(["two things", "48 px", "96 px", "192 px"])
    assert f"lose at most {table['lost'][alike].max():.1f} dB on prompts of two things" in text
    small, large = (
        table["lost"][table["made_for"].isin(names)].max()
        for names in (["48 px", "96 px"], ["192 px"])
    )
    said = f"96 px lose up to {small:.1f} dB here, and those made at 192 px up to {large:.1f}."
    assert said in text
    cell = table.set_index(["method", "made_for", "used_on"])
    lost = cell["lost"]["EigenCache"]
    assert (
        f"loses {lost[here, 'guidance 2.0']:.1f} dB at 2 and {lost[here, 'guidance 5.0']:.1f} at "
        f"5; made at 2, it loses {lost['guidance 2.0', here]:.1f} dB at 3.5; made at 5, nothing"
        in text
    )
    assert lost["guidance 5.0", here] < 0
    far = table[["made_for", "used_on"]].eq("timesteps of 1024 px").any(axis=1)
    assert f"leave it at most {plain[far].max():.1f} dB above plain sampling" in text
    below = (cell["psnr"]["EigenCache-design"] - cell["psnr"]["EigenCache"])[lambda x: x > 0]
    assert f"by {below[here, 'guidance 2.0']:.1f} dB made at 3.5 and used at 2" in text
    assert f"by {below['guidance 2.0', here]:.1f} dB made at 2 and used at 3.5" in text
    others = below.drop([(here, "guidance 2.0"), ("guidance 2.0", here)])
    assert set(others.index.get_level_values(0)) <= {"timesteps of 1024 px"}


def test_what_is_said_of_the_ablation_was_measured():
    table = pd.read_csv(ROOT / "data/benchmarks/ablation.csv")
    rows = table.drop_duplicates("label").set_index("label")
    psnr, gain = rows["psnr"], table.set_index(["factor", "label"])["gain"]
    text = " ".join((ROOT / "docs/ablation.md").read_text().split())
    steps = (psnr[label] for label in ("published", "design", "loop"))
    said = "EigenCache as published has {:.1f} dB, the aim {:.1f} and the closed loop {:.1f}."
    assert said.format(*steps) in text
    half, none, double = (
        -gain["response to errors", f"response-{share}"] for share in ("half", "0", "double")
    )
    assert (
        f"without it a plan loses {none:.1f} dB, with half of it {half:.1f} dB, and with twice as "
        f"much {double:.1f} dB." in text
    )
    near = gain["how far full steps move", "near-0"]
    assert f"may move by one step alone, it loses {-near:.1f} dB" in text
    runs = psnr[["design", *(f"runs-{count}" for count in (1, 2, 4, 8, 16))]]
    assert f"1 to 32 runs are within {runs.max() - runs.min():.1f} dB" in text
    smooth = gain["smooth share (1 run)"]
    assert f"one run costs at least {-smooth[smooth < 0].max():.1f} dB" in text
    final = gain["weight of the final error", "final-0"]
    assert f"a plan is {final:.1f} dB better without the weight" in text
    assert f"the polish is worth {-gain['closed loop: rounds', 'rounds-0']:.1f} dB" in text
    anchors = gain["closed loop: anchors"]
    assert f"6 anchors are {-anchors['anchors-3']:.1f} dB better than 3" in text
    assert anchors["anchors-all"] < 0 and gain["closed loop: runs", "loop-runs-8"] > -0.1
    assert gain["closed loop: sweeps", "sweeps-0"] > -0.1
    way = gain["from published to closed loop"]
    assert way[["published-moment", "published-output", "published-design", "optimal"]].max() < 2


def test_what_is_said_of_predictions_was_measured():
    results = " ".join((ROOT / "docs/results.md").read_text().split())
    quality = pd.read_csv(ROOT / "data/benchmarks/quality.csv")
    calibrated = quality[quality["probe"].isna()]
    near = ((calibrated["predicted"] - calibrated["measured"]).abs() <= 1.5).sum()
    assert f"reached by {near} of {len(calibrated)}." in results
    low = calibrated.eval("measured - predicted")
    assert set(calibrated["model"][low.abs() > 1.5]) == {"emoji-flux"}
    assert (low[calibrated["model"] == "emoji-flux"] > 0).all()
    spread = quality["spread"].min(), quality["spread"].max()
    assert "PSNR by {:.0f} to {:.0f} dB (standard deviation)".format(*spread) in results
    off = pd.read_csv(ROOT / "data/benchmarks/methods.csv").eval("predicted_psnr - psnr").dropna()
    assert f"were predicted {off.min():.1f} to {off.max():.1f} dB too high" in results


def test_what_is_said_of_the_oracle_was_measured():
    results = " ".join((ROOT / "docs/results.md").read_text().split())
    means = pd.read_csv(ORACLE).groupby("full_steps")[["shared", "oracle", "closed"]].mean()
    gain = means["oracle"] - means["shared"]
    assert f"knows the best plan gains {gain.min():.1f} to {gain.max():.1f} dB" in results
    assert gain.max() < 2 and (means["closed"] > means["shared"]).all()


@pytest.mark.parametrize("file", [GPU, GPU_RUN_3], ids=lambda path: path.stem)
def test_nothing_waits_for_the_device(file):
    rows = pd.read_csv(file)
    waiting = rows[rows["quantity"].str.contains(r"_(?:waits|reads|copies_to_\w+)$")]
    assert len(waiting) >= 20 and (waiting["value"] == 0).all()


def test_a_gpu_makes_the_images_that_are_stated():
    """Rounding alone sets devices apart, and settings that must not change an image do not."""
    rows = pd.read_csv(GPU_WORKFLOW, dtype={"dtype": str})
    text = " ".join((ROOT / "docs/speed.md").read_text().split())
    values = rows[rows["method"].str.startswith("devices: ")].pivot_table(
        "value", ["dtype", "method"], "quantity"
    )
    error, apart = values["relative_error_of_latents"], values["psnr_db"]
    (low, high), (coarse_low, coarse_high) = (
        (error[dtype].min() / unit, error[dtype].max() / unit)
        for dtype, unit in {"float32": 2.0**-23, "bfloat16": 2.0**-8}.items()
    )
    assert f"is {low:.0f} to {high:.0f} times float32's precision" in text
    assert f"and {coarse_low:.0f} to {coarse_high:.0f} times bfloat16's" in text
    largest = values["largest_difference_of_images"]["float32"].max()
    flipped = 100 * 255**2 / 10 ** (apart["float32"].min() / 10)  # a rounding errs by one level
    assert f"differ by {largest:.4f} of their range at most" in text
    assert (
        f"rounding of {flipped:.1f} % of the 8-bit values: {apart['float32'].min():.0f} dB" in text
    )
    coarse = apart["bfloat16"]
    assert f"In bfloat16 their PSNR is {coarse.min():.0f} to {coarse.max():.0f} dB" in text
    quality = values.filter(like="psnr_to_the_full_run").dropna()
    off = (quality.iloc[:, 0] - quality.iloc[:, 1]).abs().groupby("dtype").max()
    assert off["float32"] < 0.001 and f"{off['bfloat16']:.1f} dB in bfloat16" in text
    same = rows[(rows["quantity"] == "equal_to_the_last_bit")
                & ~rows["method"].str.startswith("devices: ")]  # fmt: skip
    assert len(same) == 10 and (same["value"] == 1).all()
    weights = rows.loc[rows["quantity"] == "largest_difference_of_weights", "value"].max()
    assert f"weights differ by {weights:.1e} at most" in text
    lease = rows.set_index("quantity")["value"]
    assert lease["overlap"] == 0 and f"began {lease['gap_seconds']:.2f} s after" in text
    assert (rows.loc[rows["quantity"] == "same_full_steps", "value"] == 1).all()


def test_the_pipelines_that_are_stated_are_those_of_the_file():
    rows = pd.read_csv(pipelines.FILE)
    stated = rf"{len(rows)} configurations of {rows['pipeline'].nunique()} pipeline classes"
    libraries = " ".join(f"{name} {rows[name].unique()[0]}," for name in ("torch", "diffusers"))
    for document in ("README.md", "docs/pipelines.md"):
        assert stated in " ".join((ROOT / document).read_text().split())
    assert libraries[:-1] in " ".join((ROOT / "docs/pipelines.md").read_text().split())
    assert f"{len(rows)} tiny pipelines" in README
    page = " ".join((ROOT / "docs/pipelines.md").read_text().split())
    inner = rows[list(pipelines.INNER)]
    kinds = (pipelines.RIGHT, pipelines.REFUSED, pipelines.FAILED)
    right, refused, failed = ((inner == kind).sum().sum() for kind in kinds)
    assert f"Of the {inner.size} combinations" in page
    assert f"tap {right} work, {refused} are refused with a reason, and {failed} fail" in page
    assert (rows[["output", "design", "closed_loop"]] == pipelines.RIGHT).all(axis=None)


def test_the_matrix_lists_the_configurations_of_the_tests(monkeypatch):
    zoo = {path.stem for path in (ROOT / "tests/pipelines/zoo").glob("*.py")}
    assert {"flux", "image", "stable", "video"} <= zoo
    monkeypatch.syspath_prepend(ROOT / "tests/pipelines")
    from zoo import ZOO

    assert [*ZOO] == list(pd.read_csv(pipelines.FILE)["configuration"])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


# ---- The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("furo", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", folder],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_site_documents_every_name_and_command(site):
    page = (site / "api.html").read_text()
    public = [name for name in eigencache.__all__ if callable(getattr(eigencache, name))]
    assert [name for name in public if f'id="eigencache.{name}"' not in page] == []
    page = (site / "cli.html").read_text()
    assert [name for name in COMMANDS if f"usage: eigencache {name}" not in page] == []
    page = (site / "configuration.html").read_text()
    assert [key for key in Config.model_fields if f">{key}<" not in page] == []
    page = (site / "figures.html").read_text()
    assert "figures/emoji-flux/pareto.pdf" in page and "{{" not in page


@pytest.mark.parametrize(
    "looked_for", ["environment_setup", "ablation", "model_licens", "multi_gpu_launch"]
)
def test_a_search_finds_what_others_call_it(site, looked_for):
    assert looked_for in (site / "searchindex.js").read_text()
