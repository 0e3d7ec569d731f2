"""Plans for use without EigenCache: as a scheduler of diffusers, or a mask for cache-dit."""

import inspect
import os
import pprint
import runpy
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from eigencache._files import replacing
from eigencache.plan import Plan, PlanError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MODULE = "planned_scheduler"


def export_scheduler(
    plan: Plan, folder: str | os.PathLike, scheduler: "SchedulerMixin | None" = None
) -> Path:
    """Write a plan at tap "output" as a scheduler, as `Plan.export_scheduler` says."""
    base = type(scheduler).__name__ if scheduler is not None else plan.scheduler
    text, path = _source(plan, base), Path(folder) / f"{MODULE}.py"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    if scheduler is not None:
        _loaded(path).from_config(scheduler.config).save_pretrained(folder)  # type: ignore[attr-defined]
    return path


def computation_mask(plan: Plan) -> list[int]:
    """Return cache-dit's `steps_computation_mask` of a plan: 1 for each full step, 0 for others.

    The weights of the plan are lost: cache-dit forecasts the other steps by a formula of its own.

    Args:
        plan: at any tap, with the same full steps for all streams.

    Raises:
        PlanError: some streams are computed at steps where others are forecast.
    """
    if plan.streams and (plan.weights == 0).all(axis=-1)[:, ~plan.full].any():
        raise PlanError("each stream of this plan has full steps of its own, which no mask can say")
    return [int(full) for full in plan.full]


def scheduler_class(name: str | None) -> Any:
    """Return the class of diffusers' schedulers of a name, if it can be stepped by a plan.

    Raises:
        PlanError: there is none, or its `step` takes other arguments.
    """
    import diffusers

    if name is None:
        raise PlanError(
            "the plan does not say which scheduler it was made with: state the pipeline's"
        )
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise PlanError(f"diffusers {diffusers.__version__} has no scheduler {name!r}")
    if [*inspect.signature(found.step).parameters][1:4] != ["model_output", "timestep", "sample"]:
        raise PlanError(
            f"{name}.step takes other arguments than the output, the timestep and the sample, so "
            "that it cannot be called for a skipped step: no scheduler can express the plan"
        )
    return found


def _source(plan: Plan, base: str | None) -> str:
    """Return the text of a plan's scheduler, as a subclass of diffusers' `base`."""
    if plan.tap != "output":
        raise PlanError(
            f"a plan at tap {plan.tap!r} works inside the network, where no scheduler reaches: "
            "make one at tap 'output'"
        )
    base = scheduler_class(base).__name__
    weights = {
        int(s): {int(a): float(plan.weights[s, a]) for a in plan.weights[s].nonzero()[0]}
        for s in (~plan.full).nonzero()[0]
    }
    steps = plan.arguments.get("num_inference_steps", len(plan))
    template = resources.files("eigencache").joinpath(f"{MODULE}.py.txt").read_text("utf-8")
    return Template(template).substitute(
        base=base, module=MODULE, version=metadata.version("eigencache"),
        full=len(plan.full_steps), steps=len(plan),
        # Nothing but numbers of the plan gets into the text, which others will run.
        arguments=f"num_inference_steps={int(steps) if isinstance(steps, int) else len(plan)}",
        timesteps=pprint.pformat(plan.timesteps.tolist(), width=90, compact=True),
        weights=pprint.pformat(weights, width=90, compact=True),
    )  # fmt: skip


def _loaded(path: Path) -> Any:
    """Return the scheduler class of a file that `export_scheduler` wrote."""
    return runpy.run_path(str(path))["PlannedScheduler"]
