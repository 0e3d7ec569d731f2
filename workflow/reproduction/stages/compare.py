"""Compare: the table of methods, grouped by budget, as CSV, as Markdown and as LaTeX.

A budget's group has every run with that many full steps, the baseline of equal compute first. For
each metric, the best run of a group is marked only if the interval of its paired difference to
every other run of the group is on its side of zero; the second best is marked likewise among the
rest.
"""

import argparse
from collections.abc import Mapping, Sequence

import pandas as pd

from eigencache._files import replacing
from eigencache.metrics import METRICS
from eigencache.metrics.statistics import LEVEL, differences, mean_interval
from eigencache.plan import FULL
from reproduction.tables.tables import read_table, write_table
from reproduction.tables.typeset import NONE, Cell, Mark, Sheet, latex, markdown, measured, number

GAIN = "psnr_gain"
TIMES = [
    "seconds", "speedup", "speedup_low", "speedup_high", "tflop", "images", "timed_images"
]  # fmt: skip
MARKS: Mapping[int, Mark] = {1: "bold", 2: "underlined"}


def compare(summary: pd.DataFrame, scores: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return one row per run, the full run first, then by full steps, the baseline before others.

    `psnr_place` is 1 for the best run of its group, 2 for the second best and empty for the others,
    or for all where no run is surely the best; so for every metric of single images.

    Args:
        summary: one row per run and reference, `reproduction.stages.table`.
        scores: one row per image and reference, of the same stage.
        reference: the run to which images are compared.

    Raises:
        ValueError: nothing was scored against that reference.
    """
    table = summary[summary["reference"] == reference]
    if table.empty:
        known = sorted(set(summary["reference"]))
        raise ValueError(f"no run is scored against {reference!r}; the references are {known}")
    table = _ordered(table)
    metrics = [name for name in table.columns if name in METRICS]
    kept = ["full_steps", "run", "method", "num_steps"]
    images = scores[scores["reference"] == reference]
    for metric in metrics:
        kept.append(metric)
        if not METRICS[metric].whole:
            values = images.pivot(index="prompt_index", columns="run", values=metric)
            table[f"{metric}_place"] = _places(table, values, METRICS[metric].higher)
            kept += [f"{metric}_low", f"{metric}_high", f"{metric}_place"]
    gain = ["baseline", GAIN, f"{GAIN}_low", f"{GAIN}_high"]
    return table[[*kept, *gain, *TIMES, "seed", "device"]].reset_index(drop=True)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "full": table["run"] != FULL,
        "steps": table["full_steps"],
        "base": table["run"] != table["baseline"],
    }
    order = pd.DataFrame(columns).sort_values(list(columns), kind="stable")
    return table.loc[order.index].copy()


def _places(table: pd.DataFrame, values: pd.DataFrame, higher: bool) -> pd.Series:
    """Return the place of every run of a table among those of its budget, by one metric.

    Neither the full run nor the reference, which equals itself, competes.
    """
    compared = table[(table["run"] != FULL) & (table["run"] != table["reference"])]
    found: dict[str, int] = {}
    for _, rows in compared.groupby("full_steps"):
        found |= places(values[rows["run"]], higher)
    return table["run"].map(found).astype("Int64")


def places(values: pd.DataFrame, higher: bool) -> dict[str, int]:
    """Return which run is the best, 1, and which the second best, 2, where that is certain.

    Args:
        values: one row per prompt, one column per run.
        higher: whether higher is better.
    """
    found: dict[str, int] = {}
    rest = values if higher else -values
    for place in (1, 2):
        if rest.shape[1] < 2:
            break
        best = rest.mean().idxmax()
        others = rest.drop(columns=best)
        ahead = (mean_interval(differences(rest[best], others[name])) for name in others)
        if not all(interval.sign > 0 for interval in ahead):
            break
        found[str(best)] = place
        rest = others
    return found


def sheet(table: pd.DataFrame, reference: str) -> Sheet:
    """Return the table of `compare` as it is typeset."""
    metrics = [name for name in table.columns if name in METRICS]
    baseline = table.loc[table["run"] == table["baseline"], "method"].drop_duplicates()
    heads = ["method", *(_head(name) for name in metrics), "speed-up ↑", "TFLOP ↓"]
    if len(baseline):
        heads.insert(1 + metrics.index("psnr") + 1, f"PSNR over {baseline.iloc[0]} (dB) ↑")
    groups = {}
    for steps, rows in table.groupby("full_steps", sort=False):
        name = f"{steps} full steps" + (" (full run)" if set(rows["run"]) == {FULL} else "")
        groups[name] = [_row(row, metrics, len(baseline) > 0) for row in rows.to_dict("records")]
    return Sheet("Methods by budget", _notes(table, reference), heads, groups)


def _head(name: str) -> str:
    return f"{METRICS[name].label} {'↑' if METRICS[name].higher else '↓'}"


def _row(row: dict, metrics: list[str], compared: bool) -> list[Cell]:
    own = row["run"] == row["baseline"]
    cells = [Cell(f"{row['method']} (baseline)" if own else row["method"])]
    for name in metrics:
        digits = METRICS[name].digits
        if METRICS[name].whole:
            cells.append(Cell(number(row[name], digits)))
            continue
        mark: Mark = MARKS.get(row[f"{name}_place"], "")
        cells.append(measured(*_interval(row, name), digits, mark=mark))
        if name == "psnr" and compared:
            gain = measured(*_interval(row, GAIN), digits, signed=True)
            cells.append(Cell(NONE) if own else gain)
    return [*cells, measured(*_interval(row, "speedup"), 2), Cell(f"{row['tflop']:#.3g}")]


def _interval(row: dict, name: str) -> tuple[float, float, float]:
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _notes(table: pd.DataFrame, reference: str) -> list[str]:
    images, seed = table["images"].max(), table["seed"].iloc[0]
    timed = table.loc[table["run"] != FULL, "timed_images"].min()
    device = " and ".join(sorted(set(table["device"])))
    against = "the full run" if reference == FULL else reference
    return [
        f"Means over the same {images} prompts for every run, none left out, against {against}"
        + ("." if pd.isna(seed) else f"; noise from seed {seed:.0f}."),
        f"Speed-up on {device} is the median of pairs of this run and a full run timed one beside "
        f"the other, of {timed} {'prompt' if timed == 1 else 'prompts'} or more.",
        "TFLOP are 1e12 operations of the denoising networks for an image, as torch counts them.",
        f"In brackets are {100 * LEVEL:.0f} % bootstrap intervals over prompts, where there are "
        "enough.",
        "Bold is the best of its budget and underlined the second, marked only where the interval "
        "of the paired difference to every other run (for the second: but the best) excludes zero.",
        *_not_compared(table),
    ]


def _not_compared(table: pd.DataFrame) -> list[str]:
    """Return which runs have no baseline of equal compute, in a sentence; none if all have one.

    The full steps of a method with a target quality are not known before its plan is made, so that
    plain sampling may have no run with as many.
    """
    compared = table[table["run"] != FULL]
    lone = compared[compared["baseline"].isna()]
    of_baseline = compared.loc[compared["run"] == compared["baseline"], "method"]
    if lone.empty or of_baseline.empty:
        return []
    runs = [f"{row.method} ({row.full_steps} full steps)" for row in lone.itertuples()]
    counts = sorted(set(lone["full_steps"]))
    return [
        f"{of_baseline.iloc[0]} has no run to compare {_listed(runs)} with: to make one, add "
        f"{_listed(counts)} to budgets in the configuration."
    ]


def _listed(words: Sequence[object]) -> str:
    *others, last = map(str, words)
    return f"{', '.join(others)} and {last}" if others else last


def main(arguments: argparse.Namespace) -> None:
    summary, scores = read_table(arguments.summary), read_table(arguments.tidy)
    table = compare(summary, scores, arguments.reference)
    write_table(table, arguments.table)
    typeset = sheet(table, arguments.reference)
    for path, text in ((arguments.markdown, markdown(typeset)), (arguments.latex, latex(typeset))):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("compare", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of reproduction.stages.table")
    parser.add_argument("--tidy", required=True, help="scores.csv of reproduction.stages.table")
    parser.add_argument("--reference", default=FULL, help="run to which images are compared")
    parser.add_argument("--table", required=True, help="CSV to write")
    parser.add_argument("--markdown", required=True, help="Markdown file to write")
    parser.add_argument("--latex", required=True, help="LaTeX file to write")
    run(main, parser, outputs=["table", "markdown", "latex"], inputs=["summary", "tidy"])
