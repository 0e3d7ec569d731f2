"""Ablation: one row for every value of every factor and every budget; CSV, Markdown, LaTeX."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from eigencache._files import replacing
from eigencache.metrics import METRICS
from eigencache.metrics.statistics import LEVEL, Interval, differences, mean_interval
from eigencache.plan import FULL
from reproduction.tables.tables import read_table, write_table
from reproduction.tables.typeset import Cell, Sheet, latex, markdown, measured, number

Factors = Mapping[str, Mapping]  # factor to {"base": label, "values": {label: value}}


def ablate(
    summary: pd.DataFrame, scores: pd.DataFrame, factors: Factors, commands: Mapping[str, str]
) -> pd.DataFrame:
    """Return one row for every value of every factor and every budget, in their order.

    `gain` is the mean over images of the PSNR's difference to the base's run of the same budget,
    the same prompt and the same noise, with its interval, `gain_low` and `gain_high`; `base` says
    whether the row is the base's own. `full_steps` is the budget.

    Args:
        summary: one row per run, `reproduction.stages.table`.
        scores: one row per image, of the same stage.
        factors: the `ablation` of the configuration.
        commands: label to the command that makes its scores again.

    Raises:
        ValueError: there are no factors, or a label or a base's run of some budget is missing.
    """
    if not factors:
        raise ValueError("the configuration names no factors: `ablation` is empty")
    psnr = scores.set_index(["run", "prompt_index"])["psnr"]
    rows = []
    for factor, part in factors.items():
        bases = _runs(summary, part["base"]).set_index("full_steps")["run"]
        for label, value in part["values"].items():
            known = {"factor": factor, "value": str(value), "label": label}
            known |= {"base": label == part["base"]}
            for row in _runs(summary, label).to_dict("records"):
                if row["full_steps"] not in bases.index:
                    raise ValueError(
                        f"{factor}: {part['base']} has no run of {row['full_steps']} full steps"
                    )
                own, base = psnr[row["run"]], psnr[bases[row["full_steps"]]]
                gain = mean_interval(differences(own, base[own.index]))
                rows.append(known | _measured(row, gain) | {"command": commands[label]})
    return pd.DataFrame(rows)


def _measured(row: Mapping, gain: Interval) -> dict:
    """Return the measurements of one run: its row of the summary, and its images' gains."""
    names = [name for name in row if name in METRICS]
    columns = [f"{name}{end}" for name in [*names, "speedup"] for end in ("", "_low", "_high")]
    kept = {column: row[column] for column in ("full_steps", *columns, "seconds") if column in row}
    return kept | {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}


def _runs(summary: pd.DataFrame, label: str) -> pd.DataFrame:
    runs = summary[summary["method"] == label]
    if runs.empty:
        raise ValueError(f"the summary has no run of {label!r}")
    return runs


def sheet(table: pd.DataFrame, images: int, reference: str) -> Sheet:
    """Return the rows of `ablate` as they are typeset; bases are bold.

    Args:
        table: from `ablate`.
        images: how many each mean is over.
        reference: the run to which images are compared.
    """
    metrics = [name for name in table.columns if name in METRICS]
    heads = ["factor", "value", "label", "PSNR to the base (dB)"]
    heads += [*(METRICS[name].label for name in metrics), "seconds", "speed-up"]
    notes = [
        f"Means over {images} prompts, against {'the full run' if reference == FULL else reference}"
        f", with {100 * LEVEL:.0f} % bootstrap intervals in brackets, where there are enough.",
        "Each factor is varied alone; its base is bold, and the others' PSNR is compared with the "
        "base's image by image.",
    ]
    groups = {}
    for budget, rows in table.groupby("full_steps"):
        begins = ~rows["factor"].duplicated()
        groups[f"{budget} full steps"] = [
            _cells(row, metrics, first)
            for (_, row), first in zip(rows.iterrows(), begins, strict=True)
        ]
    return Sheet("Ablations", notes, heads, groups, left=3)


def _cells(row: pd.Series, metrics: list[str], begins: bool) -> list[Cell]:
    gain = Cell("") if row["base"] else measured(*_interval(row, "gain"), 2, signed=True)
    return [
        Cell(row["factor"] if begins else ""),
        Cell(row["value"], mark="bold" if row["base"] else ""),
        Cell(row["label"]),
        gain,
        *(measured(*_interval(row, name), METRICS[name].digits) for name in metrics),
        Cell(number(row["seconds"], 3)),
        measured(*_interval(row, "speedup"), 2),
    ]


def _interval(row: pd.Series, name: str) -> tuple[float, float, float]:
    """Return a value and its interval, which metrics of whole sets do not have."""
    return row[name], row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)


def main(arguments: argparse.Namespace) -> None:
    tables = map(read_table, (arguments.summary, arguments.tidy))
    summary, scores = (t[t["reference"] == arguments.reference] for t in tables)
    files = " ".join(arguments.configfiles)
    folder = Path(arguments.tidy).with_suffix("")
    commands = {
        label: f"snakemake {folder / label}.csv --configfile {files} --cores all"
        for label in summary["method"].unique()
    }
    table = ablate(summary, scores, json.loads(arguments.factors), commands)
    write_table(table, arguments.table)
    typeset = sheet(table, scores["prompt_index"].nunique(), arguments.reference)
    again = f"\nA row again, here the first:\n\n    {table['command'][0]}\n"
    for path, text in (
        (arguments.markdown, markdown(typeset) + again),
        (arguments.latex, latex(typeset)),
    ):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("ablation", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of reproduction.stages.table")
    parser.add_argument("--tidy", required=True, help="scores.csv of reproduction.stages.table")
    parser.add_argument("--reference", default=FULL, help="run to which images are compared")
    parser.add_argument("--factors", required=True, help="`ablation` of the configuration, as JSON")
    parser.add_argument("--configfiles", nargs="+", required=True, help="the configuration's files")
    parser.add_argument("--table", required=True, help="CSV to write")
    parser.add_argument("--markdown", required=True, help="Markdown file to write")
    parser.add_argument("--latex", required=True, help="LaTeX file to write")
    run(main, parser, outputs=["table", "markdown", "latex"], inputs=["summary", "tidy"])
