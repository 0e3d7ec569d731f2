"""Write the card of a plan: what it is for, how good it is, how it was made, how to use it.

It is the README.md of a repository on a model hub; `eigencache push` writes it there.

examples:
  eigencache card --plan plan.safetensors --model black-forest-labs/FLUX.1-dev --out README.md
  eigencache card --plan plan.safetensors --scores scores.csv --repo user/repo --out README.md
"""

import argparse
from pathlib import Path

from eigencache._files import replacing
from eigencache.commands._common import check_file
from eigencache.sharing import CARD, card, load_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the plan, what the card says, and where to write it."""
    add_card(parser)
    parser.add_argument("--repo", metavar="USER/REPO", help="where the plan will be on the hub")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=Path(CARD), help="by default %(default)s"
    )


def add_card(parser: argparse.ArgumentParser) -> None:
    """Add the plan and what its card says that it does not."""
    parser.add_argument("--plan", metavar="PLAN", required=True, help="a file, or user/repo")
    parser.add_argument(
        "--model", metavar="MODEL", help="folder or hub id of the model that the plan is for"
    )
    parser.add_argument(
        "--scores", type=Path, metavar="FILE",
        help="of `eigencache score`: the plan's images against those of full runs",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Write the card."""
    check_file(arguments.out)
    plan = load_plan(arguments.plan)
    text = card(plan, arguments.repo or arguments.plan, arguments.model, arguments.scores)
    with replacing(arguments.out) as part:
        part.write_text(text, encoding="utf-8")
    print(arguments.out)
