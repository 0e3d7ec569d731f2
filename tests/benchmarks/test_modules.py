"""The benchmarks as they are started: from the project's folder, with nothing else set."""

import os
import subprocess

import pytest
import warm
from helpers import ROOT

# Of an environment of their own (benchmarks/peers/run).
OTHERS = {"cache_dit", "masks", "matrix", "small"}


@pytest.mark.slow
def test_every_benchmark_imports_without_a_path_that_is_set():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "benchmarks").rglob("*.py"))
        if path.stem not in OTHERS | {"__init__"}
    ]
    assert {"benchmarks.tables", "benchmarks.peers.compare"} <= {*names}
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["HF_HUB_OFFLINE"] = "1"
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    ran = subprocess.run(
        [warm.python(), "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
