"""Print the tables of the documents from the files of data/benchmarks.

    python -m benchmarks.tables                 # all of them
    python -m benchmarks.tables headline        # one
    python -m benchmarks.tables --write         # put them into the documents
    python -m benchmarks.tables --main results/emoji-flux/summary.csv --write
    python -m benchmarks.tables --methods results/methods/summary.csv --write
    python -m benchmarks.tables --ablation results/ablation/ablation.csv --write

The last three first take the numbers of the main job, of workflow/config/methods.yaml or of
ablation.yaml into data/benchmarks/main.csv, methods.csv or ablation.csv.
`tests/end_to_end/test_documents.py` checks that the documents hold the tables as they are printed.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import pipelines

BENCHMARKS = Path(__file__).parents[1] / "data" / "benchmarks"
# Runs 1 and 2 of benchmarks/gpu.py, and run 3, which measured anew what run 2 had, and more.
GPU, GPU_RUN_3 = BENCHMARKS / "gpu-nvidia-h200.csv", BENCHMARKS / "gpu-nvidia-h200-from-6.csv"
GPU_WORKFLOW, PEERS = BENCHMARKS / "gpu-workflow.csv", BENCHMARKS / "peers.csv"
MAIN, EVERY_METHOD = BENCHMARKS / "main.csv", BENCHMARKS / "methods.csv"
GUIDANCE, BUILT_IN = BENCHMARKS / "guidance.csv", BENCHMARKS / "built-in.csv"
ORACLE, CARRIED = BENCHMARKS / "oracle.csv", BENCHMARKS / "carry_over.csv"
FIT_COST, ABLATION = BENCHMARKS / "fit_cost.csv", BENCHMARKS / "ablation.csv"
PREDICTED = BENCHMARKS / "quality.csv"
LABELS = {"TaylorSeer": "TaylorSeer, order 1, output tap", "HiCache": "HiCache, output tap"}
FLUX, OURS, UNCACHED = "FluxTransformer2DModel", "EigenCache", "uncached"
QWEN, WAN = "QwenImageTransformer2DModel", "WanTransformer3DModel"
TOKENS_1024, TOKENS_512, TOKENS_VIDEO = 4096, 1024, 7920
# Seconds of a full step of FLUX.1-dev at 1024 pixels on GPUs without a measurement: docs/models.md.
ESTIMATED_STEPS = {"H100": 0.19, "A100": 0.48}
EAGER, COMPILED, WHOLE = "no", "blocks", "whole"
# What main.csv has of the main job's summary.
MAIN_COLUMNS = ["method", "full_steps", "images", "psnr", "psnr_low", "psnr_high", "predicted_psnr"]
# And of that of methods.yaml.
METHODS_COLUMNS = ["run", *MAIN_COLUMNS, "ssim", "clip_score", "speedup", "tflop", "timed_images"]
# And of the table of ablation.yaml.
ABLATION_COLUMNS = [
    "factor", "value", "label", "base", "full_steps", "psnr", "gain", "gain_low", "gain_high",
]  # fmt: skip
# What tables call the labels of the main job.
METHODS = {
    "fewer-steps": "plain sampling", "FORA": "FORA", "TaylorSeer-1": "TaylorSeer, order 1",
    "HiCache": "HiCache",
    "EigenCache-published": "EigenCache as published",
    "EigenCache-design": "EigenCache, open loop (`EigenCache-design`)",
    "EigenCache": "EigenCache, closed loop (`EigenCache`)",
}  # fmt: skip


def measured(
    quantity: str, method: str = OURS, full_steps: int | None = None, tap: str | None = None,
    compiled: str = EAGER, model: str = FLUX, image_tokens: int = TOKENS_1024, num_steps: int = 50,
    file: Path = GPU,
) -> float:  # fmt: skip
    """Return the one number that a GPU's file has of a case.

    Args:
        quantity: the name in the column of that name.
        method, full_steps, tap, compiled, model, image_tokens, num_steps: of the case; a
            `full_steps` or `tap` of None fits every row.
        file: `GPU` or `GPU_RUN_3`.

    Raises:
        LookupError: there is no such row, or rows differ.
    """
    data = pd.read_csv(file, dtype={"compiled": str})
    stated = {
        "quantity": quantity, "method": method, "full_steps": full_steps, "tap": tap,
        "compiled": compiled, "model": model, "image_tokens": image_tokens, "num_steps": num_steps,
    }  # fmt: skip
    for column, value in stated.items():
        data = data if value is None else data[data[column] == value]
    if len(values := data["value"].unique()) != 1:
        raise LookupError(f"{len(values)} values of {stated}")
    return float(values[0])


def _lines(titles: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, *rows)]
    lines.insert(1, "|---" * len(titles) + "|")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |")


def headline() -> str:
    """Return the README's table of seconds and speed-ups."""
    budgets = (13, 9, 7, 5)
    rows = []
    for title, compiled in {"eager": EAGER, "blocks compiled": COMPILED}.items():
        cells = [title, f"{measured('loop_seconds', UNCACHED, compiled=compiled):.2f} s"]
        for budget in budgets:
            seconds = measured("loop_seconds", OURS, budget, compiled=compiled)
            speedup = measured("speedup", OURS, budget, compiled=compiled)
            cells.append(f"{seconds:.2f} s ({speedup:.2f}x)")
        rows.append(cells)
    titles = ["FLUX.1-dev's architecture, 50 steps", "all 50 run"]
    return _lines([*titles, *(f"{budget} run" for budget in budgets)], rows)


def _loops(title: str, budgets: tuple[int, ...], **case: Any) -> list[list[str]]:
    """Return the rows of one shape and state: the uncached run, then the output tap."""
    seconds = measured("loop_seconds", UNCACHED, **case)
    full = measured("full_step_seconds", UNCACHED, **case)
    rows = [[title, "50", f"{seconds:.3f}", "1.00", "", f"{1e3 * full:.1f}", ""]]
    for budget in budgets:
        find = partial(measured, method=OURS, full_steps=budget, tap="output", **case)
        rows.append(
            [
                title, str(budget), f"{find('loop_seconds'):.3f}", f"{find('speedup'):.2f}",
                f"{find('share_of_ideal'):.4f}", f"{1e3 * find('full_step_seconds'):.1f}",
                f"{1e3 * find('skipped_step_seconds'):.3f}",
            ]
        )  # fmt: skip
    return rows


LOOPS = ["full steps", "seconds", "speed-up", "of ideal", "full step, ms", "skipped step, ms"]


def depth() -> str:
    """Return the table of docs/speed.md: the output tap, eager and compiled."""
    budgets = (20, 13, 9, 7, 5)
    rows = _loops("eager", budgets) + _loops("blocks compiled", budgets, compiled=COMPILED)
    return _lines(["", *LOOPS], rows)


def shapes() -> str:
    """Return the table of docs/speed.md: the output tap at other shapes, and compiled whole."""
    small, video = {"image_tokens": TOKENS_512}, {"model": WAN, "image_tokens": TOKENS_VIDEO}
    both, run_3 = {"2": GPU, "3": GPU_RUN_3}, {"3": GPU_RUN_3}
    cases: list[tuple[str, dict[str, Any], dict[str, Path]]] = [
        ("512 px, eager", small, both),
        ("512 px, blocks compiled", small | {"compiled": COMPILED}, both),
        ("1024 px, the whole transformer compiled", {"compiled": WHOLE}, run_3),
        ("Qwen-Image, 1024 px, eager", {"model": QWEN}, both),
        ("Wan 2.2 5B, 33 frames of 1280 x 704 px, eager", video, run_3),
    ]
    rows = []
    for title, case, runs in cases:
        for run, file in runs.items():
            rows += [[title, run, *row[1:]] for row in _loops(title, (7,), file=file, **case)]
    return _lines(["shape", "run", *LOOPS], rows)


def waits() -> str:
    """Return the table of docs/speed.md: how long a user of FLUX.1-dev waits for a plan.

    By network calls, as many as on emoji-flux, times the seconds of a step; and in open loop the
    time between calls.
    """
    find = partial(measured, method="EigenCache-design", full_steps=7, file=GPU_RUN_3)
    fit, network = find("fit_seconds"), find("network_seconds")
    between = max(0.0, find("between_calls_seconds") - fit)
    steps = {"H200": network / find("network_calls"), **ESTIMATED_STEPS}
    peers = pd.read_csv(PEERS)
    closed = peers[peers["method"] == OURS]
    opened = peers[peers["method"] == "EigenCache-design"].iloc[0]
    each = int(opened["fit_calls"] / opened["fit_prompts"])
    cases = [(f"open loop, {n} prompts", n * each, n * between + fit) for n in (8, 32)]
    cases += [
        (
            f"closed loop, {row.fit_prompts:.0f} prompts, {row.budget} full steps",
            int(row.fit_calls),
            0.0,
        )
        for row in closed.sort_values("budget").itertuples()
    ]
    rows = []
    for title, calls, more in cases:
        seconds = [calls * step + more for step in steps.values()]
        told = [f"{s:.0f} s" if s < 120 else f"{s / 60:.1f} min" for s in seconds]
        rows.append([title, f"{calls:,}", *told])
    estimated = [f"{name}, estimated" for name in ESTIMATED_STEPS]
    return _lines(["a plan in", "network calls", "H200", *estimated], rows)


def devices() -> str:
    """Return the table of docs/speed.md: the same prompts and noise on a GPU and a CPU."""
    data = pd.read_csv(GPU_WORKFLOW, keep_default_na=False)
    data = data[data["method"].str.startswith("devices: ")]
    rows = []
    for (method, tap, full), case in data.groupby(["method", "tap", "full_steps"], sort=False):
        value = case.set_index(["dtype", "quantity"])["value"].astype(float)
        cells = [method.removeprefix("devices: ").replace("full", "all steps"), tap, f"{full}"]
        for dtype in ("float32", "bfloat16"):
            find = value[dtype]
            cells += [f"{find['relative_error_of_latents']:.1e}", f"{find['psnr_db']:.1f} dB"]
            own = [find.get(f"psnr_to_the_full_run_on_{of}_db") for of in ("cpu", "cuda")]
            cells.append(" / ".join(f"{psnr:.1f}" for psnr in own if psnr))
        rows.append(cells)
    titles = ["sampling", "tap", "full steps"]
    for dtype in ("float32", "bfloat16"):
        titles += [f"{dtype}: error of latents", "PSNR of images", "to the full run on CPU / GPU"]
    return _lines(titles, rows)


def taps() -> str:
    """Return the table of docs/speed.md: taps and other caches, with 7 full steps."""
    data = pd.read_csv(GPU)
    data = data[
        (data["model"] == FLUX) & (data["image_tokens"] == TOKENS_1024) & (data["full_steps"] == 7)
        & (data["compiled"] == EAGER) & (data["num_steps"] == 50)
    ]  # fmt: skip
    cases = data[data["quantity"] == "speedup"][["method", "tap"]]
    rows = []
    for method, tap in cases.itertuples(index=False):
        find = partial(measured, method=method, full_steps=7, tap=tap)
        rows.append(
            [
                method, tap, f"{1e3 * find('skipped_step_seconds'):.2f}",
                f"{find('loop_seconds'):.3f}", f"{find('speedup'):.2f}",
                f"{find('share_of_ideal'):.3f}", f"{find('added_memory_mb'):,.0f}",
            ]
        )  # fmt: skip
    titles = ["method", "tap", "skipped step, ms", "seconds", "speed-up", "of ideal"]
    return _lines([*titles, "memory added, MB"], rows)


def quality() -> str:
    """Return the README's table of the main job: mean PSNR by method and number of full steps."""
    data = pd.read_csv(MAIN)
    budgets = sorted(data["full_steps"].unique())
    rows = []
    for label, title in METHODS.items():
        means = data[data["method"] == label].set_index("full_steps")["psnr"]
        bold = "**" if label == "EigenCache" else ""
        cells = [f"{bold}{means[budget]:.1f}{bold}" for budget in budgets]
        rows.append([f"{bold}{title}{bold}", *cells])
    told = data[data["method"] == "EigenCache"].set_index("full_steps")["predicted_psnr"]
    rows.append(
        ["*the same, predicted from calibration prompts*", *(f"*{told[b]:.1f}*" for b in budgets)]
    )
    return _lines(["full steps of 50", *map(str, budgets)], rows)


def masks() -> str:
    """Return the table of docs/sharing.md: cache-dit at full steps of its own and of plans."""
    data = pd.read_csv(BENCHMARKS / "cache_dit_masks.csv").set_index("method")
    rows = []
    for calibrator in ("", " + TaylorSeer-1", " + TaylorSeer-2", " + FoCa", " + DMD"):
        places = ("interval", *(f"full steps of {label}" for label in (f"{OURS}-design", OURS)))
        found = [f"{data.loc[place + calibrator, 'psnr']:.1f}" for place in places]
        rows.append([calibrator.removeprefix(" + ") or "none (reuse)", *found])
    plans = [f"**{data.loc[label, 'psnr']:.1f}**" for label in (f"{OURS}-design", OURS)]
    rows.append(["**the plan itself, by EigenCache**", "", *plans])
    return _lines(["calibrator", "cache-dit's interval", "open loop", "closed loop"], rows)


def matrix() -> str:
    """Return the table of docs/pipelines.md."""
    return pipelines.table(pd.read_csv(pipelines.FILE))


def others() -> str:
    """Return the table of docs/pipelines.md on other caches."""
    data = pd.read_csv(BENCHMARKS / "pipelines-peers.csv")
    rows = []
    for (cache, version), tried in data.groupby(["cache", "version"], sort=False):
        counts = [(tried["outcome"] == kind).sum() for kind in ("works", "no effect", "fails")]
        rows.append([cache, version, *map(str, [len(tried), *counts])])
    return _lines(["cache", "version", "configurations", "work", "no effect", "fail"], rows)


def peers() -> str:
    """Return the table of docs/results.md: solvers and caches by PSNR at 9 full steps."""
    data = pd.read_csv(PEERS)
    budgets, middle = (5, 7, 9, 13), 9
    cells = data.pivot_table("psnr", "method", "budget").reindex(columns=list(budgets))
    order = cells.sort_values([middle, 5], ascending=False).index
    at = data.sort_values("budget", key=lambda b: (b - middle).abs(), kind="stable")
    at = at.drop_duplicates("method").set_index("method")
    rows = []
    for method in order:
        row, bold = at.loc[method], "**" if method.startswith(OURS) else ""
        calls = row["fit_calls"] + np.nan_to_num(row["fit_backward_calls"])
        rows.append([
            f"{bold}{method}{bold}", row["source"],
            *("" if pd.isna(v) else f"{v:.1f}" for v in cells.loc[method]),
            f"{row['speedup']:.1f}", f"{max(row['cache_memory_mb'], 0):.2f}",
            "" if pd.isna(row["fit_prompts"]) else f"{row['fit_prompts']:.0f}",
            "" if pd.isna(calls) else f"{calls:,.0f}",
            "" if pd.isna(row["fit_seconds"]) else f"{row['fit_seconds']:.0f}",
        ])  # fmt: skip
    titles = ["method", "code", *map(str, budgets), "speed-up", "cache, MB", "prompts"]
    return _lines([*titles, "network calls", "CPU seconds"], rows)


# Each table with the document that holds it.
def guidance() -> str:
    """Return PSNR by where a plan was made and where it is used, of benchmarks/guidance.py."""
    data = pd.read_csv(GUIDANCE, dtype={"made_at": str}, keep_default_na=False)
    used = sorted(data["used_at"].unique())
    lines = [
        "| plan of 9 full steps | made at guidance | "
        + " | ".join(f"at {u:g}" for u in used)
        + " |",
        "|---" * (2 + len(used)) + "|",
    ]
    for (method, made_at), rows in data.groupby(["method", "made_at"], sort=False):
        psnr = rows.set_index("used_at")["psnr"]
        cells = [f"{psnr[u]:.1f}" for u in used]
        made = made_at.replace(" ", " and ") or "-"
        lines.append(f"| {LABELS.get(method, method)} | {made} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def oracle() -> str:
    """Return what a choice of the plan by prompt gains at most, of benchmarks/oracle.py."""
    lines = [
        "| full steps of 50 | plans | one plan for all | the best for each prompt | gain | "
        "one plan, polished |",
        "|---" * 6 + "|",
    ]
    for full_steps, rows in pd.read_csv(ORACLE).groupby("full_steps"):
        shared, best, closed = rows[["shared", "oracle", "closed"]].mean()
        lines.append(
            f"| {full_steps} | {rows['plans'].iloc[0]} | {shared:.1f} | {best:.1f} | "
            f"{(rows['oracle'] - rows['shared']).mean():.1f} | {closed:.1f} |"
        )
    return "\n".join(lines)


def fit_cost() -> str:
    """Return what a fit takes and gives by the number of calibration prompts."""
    data, counts = pd.read_csv(FIT_COST).set_index(["method", "prompts"]), [1, 2, 4, 8, 16, 32]
    lines = [
        "| calibration prompts | " + " | ".join(map(str, counts)) + " |",
        "|---" * (1 + len(counts)) + "|",
    ]
    for method in ("EigenCache-design", "EigenCache"):
        rows = data.loc[method].reindex(counts)
        psnr = ["" if pd.isna(x) else f"{x:.1f}" for x in rows["psnr"]]
        calls = ["" if pd.isna(x) else f"{x:.0f}" for x in rows["calls"] / counts]
        lines.append(f"| {method}: PSNR | " + " | ".join(psnr) + " |")
        lines.append(f"| {method}: calls for each prompt | " + " | ".join(calls) + " |")
    return "\n".join(lines)


def ablation() -> str:
    """Return the PSNR of each value of each factor of the ablation, and its gain on the base."""
    lines = ["| factor | value | PSNR | beside the base |", "|---" * 4 + "|"]
    data = pd.read_csv(ABLATION, dtype={"value": str})
    for factor, rows in data.groupby("factor", sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            value, gain = row["value"], f"{row['gain']:+.1f}"
            if row["base"]:
                value, gain = f"**{value}**", ""
            lines.append(f"| {'' if i else factor} | {value} | {row['psnr']:.1f} | {gain} |")
    return "\n".join(lines)


# How the names of methods in built-in.csv end that were measured before: when full steps of
# built-in plans were moved; when full steps could be placed anywhere and estimates were always
# trusted wholly; and when the search for those of plans of one image began once.
MOVED, FREE, ONCE = ", steps moved", ", steps free", ", one start"


def built_in_cells() -> pd.DataFrame:
    """Return built-in.csv with one row per cell, and of each the PSNR of methods and best peer.

    `best` is of the peers that compute no more than EigenCache, `best of all` of cache-dit, too.
    """
    data = pd.read_csv(BUILT_IN)
    cells = data.pivot_table(
        "psnr", ["model", "guidance", "steps", "full_steps"], "method", sort=False
    )
    peers = cells[[name for name in cells.columns if not name.startswith("EigenCache")]]
    alike = peers[[name for name in peers.columns if not name.startswith("cache-dit")]]
    return cells.assign(best=alike.max(axis=1), **{"best of all": peers.max(axis=1)})


def built_in(method: str = "EigenCache built in", first: str = "model left out") -> str:
    """Return the PSNR of a method, and how far above the best peer, of built-in.csv."""
    cells = built_in_cells().dropna(subset=method)
    above = cells[method] - cells["best"]
    settings = sorted({key[2:] for key in cells.index}, key=lambda pair: (-pair[0], pair[1]))
    lines = [
        f"| {first} | guidance | "
        + " | ".join(f"{full} of {steps}" for steps, full in settings) + " |",
        "|---" * (2 + len(settings)) + "|",
    ]  # fmt: skip
    for model, scale in dict.fromkeys(key[:2] for key in cells.index):
        keys = [(model, scale, *setting) for setting in settings]
        told = [f"{cells[method][key]:.1f} ({above[key]:+.1f})" for key in keys]
        lines.append(f"| {model} | {scale:g} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def beside_plain() -> str:
    """Return how far built-in plans, and those of one image, are from plain sampling and peers."""
    cells, methods = built_in_cells(), ("EigenCache built in", "EigenCache-design, one image")
    endings = cells.index.get_level_values("model").str.rpartition("-").get_level_values(2)
    cells["kind"] = endings.where(endings.isin(["epsilon", "v"]), "flow")
    new, old = cells.dropna(subset=methods[0]), cells[cells[methods[0]].isna()]
    known = new[new["kind"] != "v"]
    lines = [
        "| cells | built-in plan: over plain | at least | worse in | over the best peer | "
        "worse in | plan of one image: over plain | at least | worse in | over the best peer | "
        "worse in |",
        "|---" * 11 + "|",
    ]
    parts = [
        (f"{kind}, guidance {scale:g}", rows, "")
        for (kind, scale), rows in new.groupby(["kind", "guidance"], sort=False)
    ]
    theirs = new.assign(best=new["best of all"])
    parts += [("all", new, ""), ("all, cache-dit among the peers", theirs, "")]
    parts.append(("flow and epsilon", known, ""))
    parts += [(f"flow and epsilon{ending}", known, ending) for ending in (MOVED, FREE)]
    parts.append((f"others{FREE}", old, FREE))
    for name, rows, ending in parts:
        told = []
        for method in methods:
            # Plans of one image began once when full steps of built-in plans were moved.
            measured = rows.get(method + ending, rows.get(method + ONCE))
            plain, best = (measured - rows[other] for other in ("fewer steps", "best"))
            told += [f"{plain.mean():+.1f}", f"{plain.min():+.1f}"]
            told += [f"{(plain < 0).sum()} of {len(plain)}"]
            told += [f"{best.mean():+.1f}", f"{(best < 0).sum()} of {len(best)}"]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def every_method() -> str:
    """Return the PSNR of every method by its budgets, of methods.csv."""
    data = pd.read_csv(EVERY_METHOD)
    budgets = [5, 7, 9, 12, 18]
    lines = [
        "| method | " + " | ".join(f"{budget} of 50" for budget in budgets) + " | speed-up at 9 |",
        "|---" * (2 + len(budgets)) + "|",
    ]
    for method, rows in data.groupby("method", sort=False):
        rows = rows.set_index("full_steps")
        if not set(budgets) <= set(rows.index):
            continue  # the full run, and those for a quality
        cells = [f"{rows['psnr'][budget]:.1f}" for budget in budgets]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {rows['speedup'][9]:.1f} |")
    return "\n".join(lines)


def one_image() -> str:
    """Return the same of plans that were calibrated on one image."""
    return built_in("EigenCache-design, one image", "model")


def predictions() -> str:
    """Return how far predicted PSNR was from measured, of benchmarks/quality.py."""
    data = pd.read_csv(PREDICTED)
    data["off"] = (data["predicted"] - data["measured"]).abs()
    lines = [
        "| predictions for | calibrated plans: within 1.5 dB | within 2 dB | median, most | "
        "plans of probes: within 1.5 dB | within 2 dB | median, most |",
        "|---" * 7 + "|",
    ]
    cells = [(f"{m}, guidance {g:g}", r) for (m, g), r in data.groupby(["model", "guidance"])]
    for name, rows in [*cells, ("all", data)]:
        told = []
        for off in (rows.loc[rows["probe"].isna(), "off"], rows.loc[rows["probe"].notna(), "off"]):
            told += [f"{(off <= limit).sum()} of {len(off)}" for limit in (1.5, 2)]
            told.append(f"{off.median():.1f}, {off.max():.1f} dB")
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def carried() -> str:
    """Return the table of docs/results.md on plans made for one setting and used on another.

    Of the two ways between the first setting and each other one, first the plan made for the first.
    """
    data = pd.read_csv(CARRIED)
    base, columns = data["made_for"].mode()[0], ["psnr", "psnr_own", "psnr_fewer_steps"]
    there = data[data["made_for"] == base].set_index(["used_on", "method"])[columns]
    back = data[data["used_on"] == base].set_index(["made_for", "method"])[columns]
    rows = [
        [*key, *(f"{value:.1f}" for value in [*there.loc[key], *back.loc[key]])]
        for key in there.index
    ]
    titles = ["other setting", "method", "used there", "one made there", "plain there"]
    return _lines([*titles, "made there, used here", "one made here", "plain here"], rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "headline": ("README.md", headline),
    "quality": ("README.md", quality),
    "masks": ("docs/sharing.md", masks),
    "depth": ("docs/speed.md", depth),
    "taps": ("docs/speed.md", taps),
    "shapes": ("docs/speed.md", shapes),
    "waits": ("docs/speed.md", waits),
    "devices": ("docs/speed.md", devices),
    "matrix": ("docs/pipelines.md", matrix),
    "others": ("docs/pipelines.md", others),
    "peers": ("docs/results.md", peers),
    "guidance": ("docs/guidance.md", guidance),
    "oracle": ("docs/results.md", oracle),
    "carried": ("docs/results.md", carried),
    "methods": ("docs/results.md", every_method),
    "built-in": ("docs/results.md", built_in),
    "beside-plain": ("docs/results.md", beside_plain),
    "one-image": ("docs/results.md", one_image),
    "predictions": ("docs/results.md", predictions),
    "fit-cost": ("docs/results.md", fit_cost),
    "ablation": ("docs/ablation.md", ablation),
}


def take_main(summary: Path) -> None:
    """Write data/benchmarks/main.csv from the summary of the main job.

    Args:
        summary: results/emoji-flux/summary.csv; its runs that have a budget are taken.
    """
    data = pd.read_csv(summary)
    data = data[data["method"].isin(METHODS)]
    data[MAIN_COLUMNS].to_csv(MAIN, index=False)


def take_methods(summary: Path) -> None:
    """Write data/benchmarks/methods.csv from the summary of workflow/config/methods.yaml.

    Args:
        summary: results/methods/summary.csv.
    """
    pd.read_csv(summary)[METHODS_COLUMNS].to_csv(EVERY_METHOD, index=False)


def take_ablation(table: Path) -> None:
    """Write data/benchmarks/ablation.csv from the table of workflow/config/ablation.yaml.

    Args:
        table: results/ablation/ablation.csv.
    """
    pd.read_csv(table)[ABLATION_COLUMNS].round(4).to_csv(ABLATION, index=False)


def write(name: str) -> None:
    """Put a table into its document, in place of the one with the same titles, or the same first.

    Other budgets have other titles, so that the first one must do where it is in the document once.

    Args:
        name: a key of `TABLES`.

    Raises:
        ValueError: the document has no such table.
    """
    document, make = TABLES[name]
    path, table = BENCHMARKS.parents[1] / document, make()
    lines = path.read_text().splitlines()
    titles = table.splitlines()[0]
    first = titles[: titles.index("|", 1) + 1]
    alike = [i for i, line in enumerate(lines) if line.startswith(first)]
    start = alike[0] if len(alike) == 1 else lines.index(titles)
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    lines[start:end] = table.splitlines()
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", choices=TABLES)
    parser.add_argument("--write", action="store_true", help="put tables into their documents")
    parser.add_argument("--main", type=Path, metavar="SUMMARY", help="of the main job")
    parser.add_argument("--methods", type=Path, metavar="SUMMARY", help="of methods.yaml")
    parser.add_argument("--ablation", type=Path, metavar="TABLE", help="of ablation.yaml")
    arguments = parser.parse_args()
    if arguments.main:
        take_main(arguments.main)
    if arguments.methods:
        take_methods(arguments.methods)
    if arguments.ablation:
        take_ablation(arguments.ablation)
    for name in [arguments.table] if arguments.table else TABLES:
        if arguments.write:
            write(name)
        else:
            print(f"{name}, of {TABLES[name][0]}:\n\n{TABLES[name][1]()}\n")
