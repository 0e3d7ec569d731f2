"""Write a plan and its card to a repository of the Hugging Face hub, which is made if need be.

`hf auth login`, or the variable HF_TOKEN, says who you are. Anyone who may read the repository then
has the plan by its name: `eigencache.load_plan("user/repo")`, or --plan user/repo.

examples:
  eigencache push --plan plan.safetensors --repo user/repo --model black-forest-labs/FLUX.1-dev
  eigencache push --plan plan.safetensors --kernel kernel.safetensors --repo user/repo --private
"""

import argparse

from eigencache.commands.card import add_card
from eigencache.sharing import load_kernel, load_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the plan, what the card says, and the repository."""
    add_card(parser)
    parser.add_argument("--repo", metavar="USER/REPO", required=True, help="to write to")
    parser.add_argument(
        "--kernel", metavar="FILE", help="that the plan was made from, to go with it"
    )
    parser.add_argument(
        "--private", action="store_true", default=None, help="a new repository is private"
    )


def run(arguments: argparse.Namespace) -> None:
    """Push, and say which commit it is."""
    plan = load_plan(arguments.plan)
    commit = plan.push_to_hub(
        arguments.repo, model=arguments.model, scores=arguments.scores, private=arguments.private,
        kernel=load_kernel(arguments.kernel) if arguments.kernel else None,
    )  # fmt: skip
    print(f"{arguments.repo}@{commit}")
