"""The table of figures, one line each: what its module is given, and when the experiment has it.

A figure NAME is the module `reproduction.figures.NAME`, its caption `workflow/report/NAME.rst`, and
a line here. `workflow/rules/figures.smk` makes a rule of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eigencache.methods import METHODS
from eigencache.plan import FULL
from reproduction.experiment import Experiment, options

# Taps whose skipped steps run next to nothing of the network, and the methods of this project.
OUTER, OURS = ("output", "hidden"), ("EigenCache-design", "EigenCache")
NAMED = 6  # prompts whose indices a heading states; of more it states the number


class Figure(NamedTuple):
    """A figure of an experiment.

    Attributes:
        title: what the report calls it.
        inputs: the options of its module that are files, each with one path or several.
        options: its other options, each with a value or several.
        wanted: whether it is one of the experiment's targets; otherwise it is made by its path.
        setting: what its heading says of the experiment, besides model, size and steps.
    """

    title: str
    inputs: Mapping[str, str | Sequence[str]]
    options: Mapping[str, Any] = {}
    wanted: bool = True
    setting: str = ""


def setting(e: Experiment) -> str:
    """Return what the headings of all figures say: the model, the size of images and the steps."""
    stated = e.config.arguments.stated
    size = [stated.get("width"), stated.get("height")]
    frames = stated.get("num_frames")
    return ", ".join(
        [
            e.config.model,
            *([f"{size[0]} \N{MULTIPLICATION SIGN} {size[1]} pixels"] if all(size) else []),
            *([f"{frames} frames (pictures show the middle one)"] if frames else []),
            f"{stated['num_inference_steps']} sampler steps",
        ]
    )


def named_prompts(kind: str, indices: Sequence[int]) -> str:
    """Return which prompts a figure is of: their indices, or of many how many they are."""
    *others, last = map(str, indices)
    if not others:
        return f"{kind} prompt {last}"
    if len(others) >= NAMED:
        return f"{len(indices)} {kind} prompts"
    return f"{kind} prompts {', '.join(others)} and {last}"


def arguments(e: Experiment, figure: Figure) -> list[str]:
    """Return the command line of a figure's module, without `--out`."""
    said = ", ".join(filter(None, [setting(e), figure.setting]))
    return options(**figure.inputs, **figure.options, setting=said)


def figures(e: Experiment) -> dict[str, Figure]:
    """Return the figures that an experiment can have, by their names.

    An ablation has figures of its own, and those that compare methods only when asked for.
    """
    folder, settings = f"results/{e.config.experiment}", e.config.figures
    summary, scores = {"summary": f"{folder}/summary.csv"}, {"scores": f"{folder}/scores.csv"}
    ablation = {"table": f"{folder}/ablation.csv"}
    shown = [plan for label in e.planned for plan in e.plans(label)]
    compared = [
        f"{folder}/plans/{label}/{settings.plans.budget}.safetensors"
        for label in e.planned if label in e.budgeted
    ]  # fmt: skip
    taps = {k: e.spec(k).get("tap", METHODS[e.spec(k)["method"]].tap) for k in e.planned}
    inner = {"inner": [label for label, tap in taps.items() if tap not in OUTER]}
    ours = {"ours": [label for label in e.planned if e.spec(label)["method"] in OURS]}
    # All labels, which fix the colours, for those figures that draw methods in colour.
    labels = {"labels": [label for label in e.labels if label != FULL]}
    colours = settings.pareto.model_dump() | labels
    several = not e.config.ablation
    # A cache's first three steps are full; it takes one more to have a cost.
    costly = several and e.config.arguments.num_inference_steps > 3
    collected = f"{folder}/collected/{settings.trajectory.tap}.safetensors"
    prompts = f"{len(e.prompts)} evaluation prompts"
    calibrated = f"{len(e.calibration_prompts)} calibration prompts"

    def full(part: Any, prompts: str = "") -> str:
        named = prompts or named_prompts("evaluation", part.prompts)
        return f"{part.budget} of them in full, {named}"

    table = {
        "pareto": Figure("quality against speed-up", summary, colours | inner, several, prompts),
        "budget": Figure("quality against full steps", summary, colours, several, prompts),
        "metrics": Figure("other metrics against full steps", summary, colours, several, prompts),
        "strip": Figure(
            "full run, EigenCache and its peers", scores,
            settings.strip.model_dump() | ours | labels, several, full(settings.strip),
        ),
        "samples": Figure(
            "samples of every method", scores, settings.samples.model_dump() | labels, several,
            full(settings.samples),
        ),
        "plans": Figure(
            "plans", {"plans": compared}, {}, several, full(settings.plans, calibrated)
        ),
        "schedules": Figure("schedules", {"plans": shown}, {}, several, calibrated),
        "kernel": Figure(
            "kernels", {"kernels": [f"{folder}/kernels/{k}.safetensors" for k in e.kernels]}, {},
            several, calibrated,
        ),
        "errors": Figure(
            "errors at every step", {"table": f"{folder}/errors.csv"}, labels, several,
            full(settings.errors),
        ),
        "costs": Figure(
            "costs by tap", {"table": f"{folder}/costs.csv"}, {}, costly,
            full(settings.costs, named_prompts("evaluation", range(settings.costs.images))),
        ),
        "trajectory": Figure(
            "features along a run", {"trajectory": collected, "plan": e.trajectory_plan}, {}, False,
            named_prompts("calibration", [e.config.collect.prompt]),
        ),
        "ablation": Figure("ablations", ablation, {}, bool(e.config.ablation), prompts),
        "calibration": Figure(
            "calibration runs", ablation, settings.calibration.model_dump(),
            bool(settings.calibration.factors), prompts,
        ),
    }  # fmt: skip
    absent = set() if e.config.ablation else {"ablation", "calibration"}
    absent |= set() if settings.calibration.factors else {"calibration"}
    absent |= set() if compared else {"plans", "errors"}
    absent |= set() if shown else {"schedules"}
    absent |= set() if len(e.metrics) > 1 else {"metrics"}
    absent |= set() if e.budgeted[1:] else {"samples", "strip"}
    return {name: figure for name, figure in table.items() if name not in absent}
