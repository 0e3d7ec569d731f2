"""The table of figures, one line each: what its module is given, and when the experiment has it.

A figure NAME is the module `reproduction.figures.NAME`, its caption `workflow/report/NAME.rst`, and
a line here. `workflow/rules/figures.smk` makes a rule of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reproduction.experiment import OUTPUT_KERNEL, Experiment, options


class Figure(NamedTuple):
    """A figure of an experiment.

    Attributes:
        title: what the report calls it.
        inputs: the options of its module that are files, each with one path or several.
        options: its other options, each with a value or several.
        wanted: whether it is one of the experiment's targets; otherwise it is made by its path.
    """

    title: str
    inputs: Mapping[str, str | Sequence[str]]
    options: Mapping[str, Any] = {}
    wanted: bool = True

    @property
    def arguments(self) -> list[str]:
        """The command line of its module, without `--out`."""
        return options(**self.inputs, **self.options)


def figures(e: Experiment) -> dict[str, Figure]:
    """Return the figures that an experiment can have, by their names.

    An ablation has figures of its own, and those that compare methods only when asked for.
    """
    folder, settings = f"results/{e.config.experiment}", e.config.figures
    summary = {"summary": f"{folder}/summary.csv"}
    ablation = {"table": f"{folder}/ablation.csv"}
    kernels = sorted(e.kernels, key=lambda kernel: kernel != OUTPUT_KERNEL)
    shown = [plan for label in e.planned for plan in e.plans(label)]
    compared = [
        f"{folder}/plans/{label}/{settings.plans.budget}.safetensors"
        for label in e.planned if label in e.budgeted
    ]  # fmt: skip
    colours = settings.pareto.model_dump()
    samples = settings.samples.model_dump()
    several = not e.config.ablation
    # A cache's first three steps are full; it takes one more to have a cost.
    costly = several and e.config.arguments.num_inference_steps > 3
    collected = f"{folder}/collected/{settings.trajectory.tap}.safetensors"

    table = {
        "pareto": Figure("quality against speed-up", summary, colours, several),
        "budget": Figure("quality against full steps", summary, colours, several),
        "samples": Figure("samples", {"scores": f"{folder}/scores.csv"}, samples, several),
        "plans": Figure("plans", {"plans": compared}, wanted=several),
        "schedules": Figure("schedules", {"plans": shown}, wanted=several),
        "kernel": Figure(
            "kernels", {"kernels": [f"{folder}/kernels/{k}.safetensors" for k in kernels]},
            wanted=several,
        ),
        "quality": Figure("predicted quality", summary, wanted=several and bool(e.refined)),
        "errors": Figure("errors at every step", {"table": f"{folder}/errors.csv"}, wanted=several),
        "costs": Figure("costs by tap", {"table": f"{folder}/costs.csv"}, wanted=costly),
        "trajectory": Figure(
            "features along a run", {"trajectory": collected, "plan": e.trajectory_plan},
            wanted=False,
        ),
        "ablation": Figure("ablations", ablation, wanted=bool(e.config.ablation)),
        "calibration": Figure(
            "calibration runs", ablation, settings.calibration.model_dump(),
            wanted=bool(settings.calibration.factors),
        ),
    }  # fmt: skip
    absent = set() if e.config.ablation else {"ablation", "calibration"}
    absent |= set() if settings.calibration.factors else {"calibration"}
    absent |= set() if compared else {"plans", "errors"}
    absent |= set() if shown else {"schedules"}
    return {name: figure for name, figure in table.items() if name not in absent}
