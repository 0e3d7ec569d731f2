"""Run the tests of every tiny pipeline and write what came of them: data/benchmarks/pipelines.csv.

    python -m benchmarks.pipelines                # about ten minutes on one core
    python -m benchmarks.pipelines --show         # the table of docs/pipelines.md, from the file

The configurations are those of `tests/pipelines/zoo`, pipelines of diffusers with random weights.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
FILE = ROOT / "data" / "benchmarks" / "pipelines.csv"
MODULES = ("test_matrix", "test_matrix_inner", "test_matrix_calibrated")
INNER = ("hidden", "blocks", "delta", "modules")
# Columns of the file that say what was tried, and what each says of itself where all went well.
TRIED = ("output", *INNER, "design", "closed_loop")
RIGHT, REFUSED, FAILED = "right", "refused", "failed"
# The families that configurations belong to, by how their names begin.
FAMILIES = {
    "FLUX.1": "flux", "FLUX.2": "flux2", "Stable Diffusion XL": "sdxl",
    "Stable Diffusion 1.5": "sd15 latent-consistency", "AnimateDiff": "animatediff",
    "Stable Video Diffusion": "stable-video-diffusion", "Stable Diffusion 3, 3.5": "sd3 sd35",
    "Qwen-Image": "qwen", "Z-Image": "z-image", "PixArt": "pixart", "DiT": "dit",
    "Sana": "sana sana-video", "Lumina": "lumina lumina2",
    "HunyuanImage, HunyuanDiT": "hunyuan-image hunyuan-dit", "Chroma": "chroma",
    "HiDream": "hidream", "AuraFlow": "aura-flow", "OmniGen": "omnigen",
    "CogView 3, 4": "cogview3 cogview4", "Bria": "bria", "Krea 2": "krea2",
    "Kandinsky 5": "kandinsky5", "PRX": "prx", "Ovis-Image": "ovis", "Wan 2.1": "wan21",
    "Wan 2.2": "wan22", "Wan VACE, video to video": "wan-vace wan-video", "SkyReels-V2": "skyreels",
    "LTX": "ltx", "LTX-2, with sound": "ltx2", "HunyuanVideo": "hunyuan-video",
    "CogVideoX": "cogvideox", "Mochi": "mochi", "Cosmos": "cosmos cosmos2",
    "Motif-Video": "motif-video", "Allegro": "allegro", "Latte": "latte",
    "Stable Audio": "stable-audio",
}  # fmt: skip


class Recorder:
    """A plugin of pytest that remembers what became of each configuration."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[str]]] = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call" and report.passed:
            return
        test, _, parameters = report.nodeid.partition("[")
        if not parameters:
            return
        name, column = _place(test, parameters.rstrip("]"))
        # A test that says its outcome and fails then has only found another than the file states.
        # What fails before or after it is a failure all the same.
        said = dict(report.user_properties).get("outcome") if report.when == "call" else None
        outcome = said or (RIGHT if report.passed else FAILED)
        self.found.setdefault(name, {}).setdefault(column, []).append(outcome)


def _place(test: str, parameters: str) -> tuple[str, str]:
    """Return the configuration and the column that a test with its parameters belongs to."""
    if "test_matrix_inner" in test:
        tap = next(tap for tap in INNER if re.search(rf"(^|-){tap}(-|$)", parameters))
        return re.sub(rf"(^|-){tap}(-|$)", "", parameters), tap
    if "test_matrix_calibrated" in test:
        loop = "design" if "EigenCache-design" in parameters else "closed_loop"
        return re.sub(r"-?EigenCache(-design)?-options\d+-?", "", parameters), loop
    return parameters, "output"


def family(name: str) -> str:
    """Return the family of a configuration: the one with the longest beginning that fits."""
    fits = [
        (len(start), title)
        for title, starts in FAMILIES.items()
        for start in starts.split()
        if name == start or name.startswith(start + "-")
    ]
    return max(fits)[1]


def rows(found: dict[str, dict[str, list[str]]], pipelines: dict[str, str]) -> pd.DataFrame:
    """Return the file's rows, one per configuration.

    Args:
        found: by configuration and column, the outcomes of its tests.
        pipelines: by configuration, the class of its pipeline.
    """

    def outcome(outcomes: Iterable[str]) -> str:
        kinds = set(outcomes)
        return FAILED if FAILED in kinds else REFUSED if REFUSED in kinds else RIGHT

    libraries = {name: version(name) for name in ("torch", "diffusers")}
    return pd.DataFrame(
        {"configuration": name, "family": family(name), "pipeline": pipelines[name]}
        | {column: outcome(found[name][column]) for column in TRIED}
        | libraries
        for name in pipelines
    )


def table(data: pd.DataFrame) -> str:
    """Return the Markdown table: for each family, how many configurations each column is right in.

    Args:
        data: the rows of the file.
    """
    titles = ["family", "configurations", "output", *INNER, "design", "closed loop"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]

    def line(title: str, some: pd.DataFrame) -> str:
        counts = [str((some[column] == RIGHT).sum()) for column in TRIED]
        return "| " + " | ".join([title, str(len(some)), *counts]) + " |"

    lines += [line(title, data[data["family"] == title]) for title in data["family"].unique()]
    return "\n".join([*lines, line("**all**", data)])


def run() -> pd.DataFrame:
    """Run the tests and return the rows of the file."""
    import pytest

    sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
    from zoo import ZOO

    recorder = Recorder()
    files = [str(ROOT / "tests" / "pipelines" / f"{name}.py") for name in MODULES]
    pytest.main(["-q", "-p", "no:randomly", "--tb=line", *files], plugins=[recorder])
    return rows(recorder.found, {name: type(ZOO[name]().pipe).__name__ for name in ZOO})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="print the table of the file as it is")
    parser.add_argument("--out", type=Path, default=FILE, help=f"default {FILE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if not arguments.show:
        run().to_csv(arguments.out, index=False)
    print(table(pd.read_csv(arguments.out)))
