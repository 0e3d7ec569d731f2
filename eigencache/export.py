"""Plans for use without EigenCache: as a scheduler of diffusers, or a mask for cache-dit."""

import functools
import inspect
import math
import os
import pprint
import runpy
import tempfile
import warnings
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, cast

from eigencache._checks import fixed
from eigencache._files import replacing
from eigencache.plan import Plan, PlanError, PlanWarning

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MODULE = "planned_scheduler"
# A relative difference that networks explain which sum in another order each time they run.
SAME = 3e-4


UNCHECKED = """\
Not checked: no result of this scheduler was compared with what EigenCache makes by the plan."""


def export_scheduler(
    plan: Plan, folder: str | os.PathLike, scheduler: "SchedulerMixin | None" = None,
    pipe: Any = None, call: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a plan at tap "output" as a scheduler, as `Plan.export_scheduler` says."""
    if pipe is not None:
        if scheduler is not None:
            raise ValueError("state a scheduler or a pipeline that has one, not both")
        scheduler = pipe.scheduler
    elif call:
        raise ValueError(f"{', '.join(sorted(call))}: state the pipeline to call with it, pipe=...")
    base = type(scheduler).__name__ if scheduler is not None else plan.scheduler
    text = _source(plan, base, UNCHECKED)
    if pipe is not None:
        text = _source(plan, base, _checked(plan, text, pipe, call or {}))
    else:
        warnings.warn(
            "the exported scheduler was not compared with the plan: a pipeline that decides "
            "something by the number of steps it sees would make other images with it, without a "
            "message; state the pipeline and a prompt to compare one run",
            PlanWarning, stacklevel=3,
        )  # fmt: skip
    path = Path(folder) / f"{MODULE}.py"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    if scheduler is not None:
        _loaded(path).from_config(scheduler.config).save_pretrained(folder)  # type: ignore[attr-defined]
    return path


def _checked(plan: Plan, text: str, pipe: Any, call: Mapping[str, Any]) -> str:
    """Run a pipeline by a plan and by its scheduler; return what the scheduler's file says of that.

    What a pipeline does with the steps that it sees is up to its class and to the call, so a run
    must tell. Both give the same bits, but for one thing that the file states: a pipeline that
    rounds the latents after each step cannot do so at the steps that it does not see. A third run
    tells whether this explains a difference.

    Raises:
        PlanError: the scheduler's result is another, or the pipeline cannot be run with it.
    """
    from eigencache.calibration._calls import called, quiet
    from eigencache.calibration.sampler import check_arguments
    from eigencache.runtime import cached

    name, call = type(pipe).__name__, {**fixed(plan.arguments), **call}
    check_arguments(pipe, [], call)
    before = pipe.scheduler

    def planned() -> list[Any]:
        with cached(pipe, plan):
            return _values(called(pipe, call, seed=0))

    try:
        with quiet(pipe):
            expected = planned()
            try:
                pipe.scheduler = _class_in(text).from_config(before.config)
                found = _values(called(pipe, call, seed=0))
            except Exception as error:
                raise PlanError(
                    f"{name} does not run with the exported scheduler ({error}): use the plan with "
                    "EigenCache, which samples this pipeline"
                ) from error
            far = rest = _distance(found, expected)
            if far:
                pipe.scheduler = _unrounded(type(before), plan).from_config(before.config)
                rest = _distance(found, planned())
    finally:
        pipe.scheduler = before
    told = f"Checked: one result of {name} by this scheduler was compared with what EigenCache"
    if far == 0:
        return f"{told}\nmakes by the plan. They are the same to the last bit."
    if rest <= SAME:
        return f"{told}\nmakes by the plan. Rounding alone makes them differ, by {far:.2g}."
    raise PlanError(
        f"the exported scheduler does not do what the plan does on {name}: with the same noise the "
        f"results differ by {far:.2g} (relative RMS), which rounding does not explain. The "
        "pipeline decides something by the number of steps it sees, such as where a ControlNet "
        "ends, or remembers earlier steps: use the plan with EigenCache"
    )


def _unrounded(base: Any, plan: Plan) -> Any:
    """Return a scheduler class whose latents no pipeline rounds at the steps that a plan skips."""
    import torch

    from eigencache.calibration._calls import sample_of

    class Unrounded(base):
        @functools.wraps(base.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self._turn, self._kept = 0, cast("torch.Tensor | None", None)

        @functools.wraps(base.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            call = inspect.signature(base.step).bind(self, *args, **kwargs)
            given, kept = call.arguments["sample"], self._kept
            if kept is not None and not plan.full[self._turn]:
                off = (given.to(kept.dtype) - kept).abs().max()
                if off <= torch.finfo(torch.bfloat16).eps * kept.abs().max():
                    call.arguments["sample"] = kept
            result = super().step(*call.args[1:], **call.kwargs)
            self._turn, self._kept = self._turn + 1, sample_of(result)
            return result

    Unrounded.__name__ = base.__name__
    return Unrounded


def _values(result: Any) -> list[Any]:
    """Return what a pipeline returned, as float64 tensors on the CPU."""
    import numpy as np
    import torch

    if isinstance(result, torch.Tensor):
        return [result.detach().double().cpu()]
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [value for item in result for value in _values(item)]
    return [] if result is None else [torch.from_numpy(np.asarray(result, np.float64))]


def _distance(found: list[Any], expected: list[Any]) -> float:
    """Return the root-mean-square difference of tensors over that of the second, at its largest."""
    far = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not one.isfinite().all():
            return math.inf
        if not one.equal(other):
            far = max(far, float((one - other).norm() / other.norm()))
    return far


def computation_mask(plan: Plan) -> list[int]:
    """Return cache-dit's `steps_computation_mask` of a plan: 1 for each full step, 0 for others.

    The weights of the plan are lost: cache-dit forecasts the other steps by a formula of its own.

    Args:
        plan: at any tap, with the same full steps for all streams.

    Raises:
        PlanError: some streams are computed at steps where others are forecast.
    """
    if plan.streams and (plan.weights == 0).all(axis=-1)[:, ~plan.full].any():
        raise PlanError(
            "each stream of this plan has full steps of its own: no mask can express it"
        )
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


def _source(plan: Plan, base: str | None, checked: str) -> str:
    """Return the text of a plan's scheduler, a subclass of diffusers' `base`.

    `checked` is what the text says of how it was checked.
    """
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
        base=base, checked=checked, module=MODULE, version=metadata.version("eigencache"),
        full=len(plan.full_steps), steps=len(plan),
        # Nothing but numbers of the plan gets into the text, which others will run.
        arguments=f"num_inference_steps={int(steps) if isinstance(steps, int) else len(plan)}",
        timesteps=pprint.pformat(plan.timesteps.tolist(), width=90, compact=True),
        weights=pprint.pformat(weights, width=90, compact=True),
    )  # fmt: skip


def _loaded(path: Path) -> Any:
    """Return the scheduler class of a file that `export_scheduler` wrote."""
    return runpy.run_path(str(path), run_name=MODULE)["PlannedScheduler"]


def _class_in(text: str) -> Any:
    """Return the scheduler class of a file's text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{MODULE}.py"
        path.write_text(text, encoding="utf-8")
        return _loaded(path)
