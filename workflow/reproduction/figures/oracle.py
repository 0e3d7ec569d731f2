"""Oracle: what choosing a plan for each prompt could gain over one plan for all.

A point is an evaluation prompt, sampled by a plan of one budget (`benchmarks/oracle.py`): the one
for all prompts, the best for this prompt, or the one for all after its polish. Prompts are in the
order of the first.
"""

import argparse

import pandas as pd
from matplotlib.figure import Figure

from reproduction.figures._common import (
    TWO_COLUMNS,
    Heading,
    figure_parser,
    legend_below,
    looks,
    page,
    panel_title,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

HEIGHT = 2.9  # inches of the panels and their legend
NAMES = {
    "shared": "one plan for all",
    "oracle": "the best for each prompt",
    "closed": "one plan, polished",
}
NOTE = (
    "The best plan of a prompt cannot be known beforehand. It bounds what decisions made while "
    "sampling could gain by choosing among these plans."
)


@style()
def draw(table: pd.DataFrame, setting: str = "") -> Figure:
    """Return the figure.

    Args:
        table: one row per prompt and budget.
        setting: for the heading.

    Raises:
        ValueError: the table is empty or lacks a column.
    """
    require(table, ["full_steps", "plans", *NAMES], "rows of prompts")
    budgets = sorted(table["full_steps"].unique())
    figure = page(TWO_COLUMNS, HEIGHT, Heading("A plan for each prompt", setting, NOTE))
    panels = figure.subplots(1, len(budgets), squeeze=False)[0]
    drawn = {key: {**look, "linestyle": "none"} for key, look in looks([*NAMES]).items()}
    for place, (axes, budget) in enumerate(zip(panels, budgets, strict=True)):
        rows = table[table["full_steps"] == budget].sort_values("shared")
        for key in NAMES:
            axes.plot(range(1, len(rows) + 1), rows[key], **drawn[key])
        panel_title(axes, place, f"{budget} full steps, {rows['plans'].iloc[0]} plans")
        axes.set_xlabel("prompt")
    panels[0].set_ylabel("final latents, -10 log10 MSE (dB)")
    handles = panels[0].get_lines()
    legend_below(figure, handles, [*NAMES.values()], len(NAMES))
    return figure


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table), arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("oracle", __doc__)
    parser.add_argument("--table", required=True, help="CSV of benchmarks/oracle.py")
    run(main, parser, outputs=["out"], sources=["table"])
