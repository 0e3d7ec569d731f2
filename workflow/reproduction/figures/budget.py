"""Budget: the PSNR of each method against its full steps, and the full steps at equal PSNR.

The figure is like `reproduction.figures.pareto`, with the same methods and looks, but with full
steps in place of the measured speed-up: it shows what the forecasts are worth, whatever they cost.
A method that takes fewer steps computes all of them in full. Plans that predict their PSNR have a
dash at the prediction.
"""

import argparse

from reproduction.figures import pareto


def main(arguments: argparse.Namespace) -> None:
    pareto.main(arguments, pareto.STEPS)


if __name__ == "__main__":
    from reproduction.program import run

    run(main, pareto.command("budget", __doc__), outputs=["out"], inputs=["summary"])
