"""Ablation: one row for every value of every factor and every budget, as CSV and as Markdown."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eigencache.files import replacing
from eigencache.stages import run
from eigencache.tables import of_first_reference, read_table, write_table

Factors = Mapping[str, Mapping]  # factor to {"base": label, "values": {label: value}}

HEADS = ("factor", "value", "PSNR (dB)", "to the base (dB)", "SSIM", "seconds", "speed-up", "label")
ALIGNED = ("---", "---", "---:", "---:", "---:", "---:", "---:", "---")


def ablate(
    summary: pd.DataFrame, scores: pd.DataFrame, factors: Factors, commands: Mapping[str, str]
) -> pd.DataFrame:
    """Return one row for every value of every factor and every budget, in their order.

    `gain` is the mean over images of the PSNR's difference to the base's run of the same budget,
    the same prompt and the same noise, and `gain_error` the standard error of that mean; `base`
    says whether the row is the base's own. `full_steps` is the budget.

    Args:
        summary: of `eigencache.stages.table`.
        scores: of all labels, `eigencache.stages.score`.
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
                gain = psnr[row["run"]] - psnr[bases[row["full_steps"]]]
                rows.append(known | _measured(row, gain) | {"command": commands[label]})
    return pd.DataFrame(rows)


def _measured(row: Mapping, gain: pd.Series) -> dict:
    """Return what was measured of one run: from its row of the summary, and its images' gains."""
    return {
        "full_steps": row["full_steps"],
        "psnr": row["psnr"],
        "gain": gain.mean(),
        "gain_error": gain.std() / np.sqrt(len(gain)),
        "ssim": row["ssim"],
        "seconds": row["seconds"],
        "speedup": row["speedup"],
    }


def _runs(summary: pd.DataFrame, label: str) -> pd.DataFrame:
    runs = summary[summary["method"] == label]
    if runs.empty:
        raise ValueError(f"the summary has no run of {label!r}")
    return runs


def markdown(table: pd.DataFrame, images: int) -> str:
    """Return the rows of `ablate` as a Markdown document, one table a budget; bases are bold.

    Args:
        table: from `ablate`.
        images: how many each mean is over.
    """
    lines = [
        "# Ablations",
        "",
        f"PSNR and SSIM to the full run, means over {images} prompts. Each factor is varied alone; "
        "its base is bold, and the others' PSNR is compared with the base's image by image (mean "
        "and its standard error).",
    ]
    for budget, rows in table.groupby("full_steps"):
        lines += ["", f"## {budget} full steps", ""]
        begins = ~rows["factor"].duplicated()
        cells = [_cells(row, begins[i]) for i, row in rows.iterrows()]
        lines += map(_line, [HEADS, ALIGNED, *cells])
    example = table["command"].iloc[0]
    return "\n".join([*lines, "", "A row again, here the first:", "", f"    {example}", ""])


def _cells(row: pd.Series, begins: bool) -> list[str]:
    gain = "" if row["base"] else f"{row['gain']:+.2f} ± {row['gain_error']:.2f}"
    numbers = [f"{row['psnr']:.2f}", gain, f"{row['ssim']:.4f}", f"{row['seconds']:.3f}",
               f"{row['speedup']:.2f}"]  # fmt: skip
    value = f"**{row['value']}**" if row["base"] else row["value"]
    return [row["factor"] if begins else "", value, *numbers, f"`{row['label']}`"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: argparse.Namespace) -> None:
    summary = read_table(arguments.summary)
    scores = pd.concat(map(read_table, arguments.scores), ignore_index=True)
    files = " ".join(arguments.configfiles)
    commands = {
        Path(path).stem: f"snakemake {path} --configfile {files} --cores all"
        for path in arguments.scores
    }
    scores = of_first_reference(scores)
    table = ablate(summary, scores, json.loads(arguments.factors), commands)
    write_table(table, arguments.table)
    with replacing(arguments.markdown) as part:
        part.write_text(markdown(table, scores["prompt_index"].nunique()), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("ablation", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of eigencache.stages.table")
    parser.add_argument("--scores", nargs="+", required=True, help="LABEL.csv of every label")
    parser.add_argument("--factors", required=True, help="`ablation` of the configuration, as JSON")
    parser.add_argument("--configfiles", nargs="+", required=True, help="the configuration's files")
    parser.add_argument("--table", required=True, help="CSV to write")
    parser.add_argument("--markdown", required=True, help="Markdown file to write")
    run(main, parser, outputs=["table", "markdown"], inputs=["summary", "scores"])
