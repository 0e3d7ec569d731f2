"""Errors: the error of cached runs at every step on a few evaluation prompts, and its prediction.

One row a label, step, quantity and prompt:

    label, full_steps  of the plan
    step, full         of the sampler, from 0, and whether the plan computes it in full
    prompt_index       of the evaluation prompt; empty where the value is predicted
    quantity           "forecast" or "latents"
    value              what is measured, or predicted

"forecast" is in open loop, at the steps that forecast: the relative error |f' - f| / |f| of what
the plan's weights make of the features of an undisturbed full run, all streams of the plan's tap
that the step forecasts together. Plans that recompute tokens have none. "latents" is in closed
loop: the root of the mean square difference between the latents after a step of the cached run and
of the full run, in units of the noise at the start, of which a number has variance one.

Both are predicted, from the weights and a kernel of calibration prompts alone, for plans at the
output tap (`eigencache.design.forecast_errors`, `latents_errors`). Of the others neither can be:
their kernels, where they have any, are one a stream or of cosines, which have no sizes, and none
says what an error inside the network makes of its output. How the outputs move the latents is
what the kernel says of the scheduler (`Kernel.step_sizes`).
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from eigencache.calibration._calls import called, quiet, sample_of
from eigencache.calibration.recording import recording
from eigencache.calibration.sampler import image_seed
from eigencache.commands.prompts import opened, read_calls
from eigencache.design import forecast_errors, latents_errors
from eigencache.kernel import Kernel, KernelError
from eigencache.plan import Plan, PlanError
from eigencache.runtime import cached
from eigencache.runtime._hooks import Call, forecast
from eigencache.runtime._taps import tensors
from reproduction.models.pipeline import add_pipeline, loaded
from reproduction.observing import following
from reproduction.tables.tables import write_table

FORECAST, LATENTS = "forecast", "latents"
Errors = Mapping[str, np.ndarray]  # quantity to float64 [T], nan where there is none


class OpenLoop:
    """The forecasts of one stream by plans along an uncached run; called with each feature.

    Features that a later step of some plan draws on are kept, once for all plans. Where a network
    is called several times per step, the features of each of its calls are forecast from those of
    the same call.

    Attributes:
        squares: label to step to the squared norms of the forecast's error and of the feature, one
            tensor `[2]`; of steps that forecast the stream.

    Raises:
        PlanError: the sampler takes more steps than the plans have.
    """

    def __init__(self, name: str, plans: Mapping[str, Plan], anchor_device: str | None = None):
        self.weights = {label: plan.weights_of(name) for label, plan in plans.items()}
        self.call = Call(anchor_device and torch.device(anchor_device))
        used = np.any([weights != 0 for weights in self.weights.values()], axis=0)
        self.last_use = [max([-1, *np.flatnonzero(column)]) for column in used.T]
        self.anchors: dict[tuple[int, int], tuple] = {}
        self.step, self.passes = -1, 0
        self.squares: dict[str, dict[int, torch.Tensor]] = {label: {} for label in plans}

    def __call__(self, step: int, feature) -> None:
        if step >= len(self.last_use):
            raise PlanError(f"the plans are of {len(self.last_use)} steps, the sampler takes more")
        self.passes = self.passes + 1 if step == self.step else 0
        if step > self.step:
            for key in [(a, k) for a, k in self.anchors if self.last_use[a] < step]:
                del self.anchors[key]
        self.step = step
        for label, weights in self.weights.items():
            row = weights[step]
            terms = [(self.anchors[int(a), self.passes], float(row[a])) for a in row.nonzero()[0]]
            if terms:
                made = forecast(terms, tensors(feature)[0].device, wide=True)
                pairs = list(zip(tensors(made), tensors(feature), strict=True))
                error = sum((ours - true).square().sum() for ours, true in pairs)
                size = sum(true.to(ours.dtype).square().sum() for ours, true in pairs)
                found = self.squares[label]
                found[step] = found.get(step, 0) + torch.stack([error, size])
        if self.last_use[step] > step:
            self.anchors[step, self.passes] = _kept(feature, self.call)


def _kept(feature, call_: Call) -> tuple[torch.Tensor, ...]:
    return tuple(call_.keep(tensor) for tensor in tensors(feature))


class Latents:
    """The latents after each step of one run; called with what the scheduler returns."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def __call__(self, result) -> None:
        self.rows.append(sample_of(result).double().flatten().cpu().numpy())

    def less(self, others: "Latents") -> np.ndarray:
        """Return the root of the mean square difference after each step, float64 `[T]`."""
        return np.sqrt(np.square(np.stack(self.rows) - np.stack(others.rows)).mean(axis=1))


def full_run(
    pipe, call: Mapping[str, Any], seed: int, plans: Mapping[str, Plan],
    anchor_device: str | None = None,
) -> tuple[Latents, dict[str, np.ndarray]]:  # fmt: skip
    """Sample one image in full, and forecast its features by every plan along the way.

    Returns:
        The latents after each step; and label to the relative error of the plan's forecast at each
        step, float64 `[T]`, nan where it forecasts nothing.
    """
    followed: dict[tuple[str, str], OpenLoop] = {}
    forecasting = {label: plan for label, plan in plans.items() if not plan.refresh}
    latents = Latents()

    def keep(tap: str, name: str, feature) -> None:
        if (tap, name) not in followed:
            there = {label: plan for label, plan in forecasting.items() if plan.tap == tap}
            followed[tap, name] = OpenLoop(name, there, anchor_device)
        followed[tap, name](len(recorder.moments), feature)

    taps = {plan.tap for plan in forecasting.values()}
    with recording(pipe, taps, keep) as recorder, following(pipe, latents):
        called(pipe, call, seed)
    for plan in plans.values():
        plan.check_timesteps(recorder.timesteps)
    loops = list(followed.values())
    return latents, {label: _relative(label, loops, len(plan)) for label, plan in plans.items()}


def _relative(label: str, loops: list[OpenLoop], count: int) -> np.ndarray:
    """Return the relative errors of a plan's forecasts, over all streams together."""
    sums = np.zeros((count, 2))
    for stream in loops:
        for step, squares in stream.squares.get(label, {}).items():
            sums[step] += squares.double().cpu().numpy()
    error, size = sums.T
    return np.sqrt(np.divide(error, size, out=np.full(count, np.nan), where=size > 0))


def measured(
    pipe, call: Mapping[str, Any], seed: int, plans: Mapping[str, Plan],
    anchor_device: str | None = None,
) -> Iterator[tuple[str, Errors]]:  # fmt: skip
    """Yield each label and the errors of its plan in one image, by quantity.

    Args:
        pipe: a pipeline of diffusers.
        call: the arguments that it is called with.
        seed: of the noise, from `eigencache.calibration.sampler.image_seed`.
        plans: label to plan.
        anchor_device: where features are kept; by default where they are made.

    Raises:
        PlanError: a plan was made for another sampler or model.
        ValueError: the network lacks a tap.
    """
    full, forecasts = full_run(pipe, call, seed, plans, anchor_device)
    for label, plan in plans.items():
        latents = Latents()
        with quiet(pipe), cached(pipe, plan, anchor_device), following(pipe, latents):
            called(pipe, call, seed)
        yield label, {FORECAST: forecasts[label], LATENTS: latents.less(full)}


def predicted(plan: Plan, kernel: Kernel) -> Errors:
    """Return the errors that a kernel predicts for a plan, by quantity; empty if it cannot.

    Args:
        plan: at any tap; only those at the output have predictions.
        kernel: of the output tap.

    Raises:
        KernelError: the kernel is none of second moments of whole features at the output tap.
        PlanError: plan and kernel are of other timesteps.
    """
    kind = (kernel.tap, kernel.features, kernel.normalisation)
    if kind != ("output", "full", "second-moment"):
        raise KernelError(f"errors are told from second moments of the output, not from {kind}")
    if plan.tap != "output":
        return {}
    plan.check_timesteps(kernel.timesteps)
    forecasts = np.where(plan.full, np.nan, forecast_errors(plan, kernel.matrix()))
    latents = latents_errors(plan, kernel.matrix(), kernel.step_sizes)
    return {FORECAST: forecasts, LATENTS: latents}


def rows(label: str, plan: Plan, errors: Errors, prompt_index: int | None = None) -> list[dict]:
    """Return the rows of one plan, measured on a prompt or, without a prompt, predicted."""
    return [
        {
            "label": label,
            "full_steps": len(plan.full_steps),
            "step": step,
            "full": bool(plan.full[step]),
            "prompt_index": prompt_index,
            "quantity": quantity,
            "value": value,
        }
        for quantity, values in errors.items()
        for step, value in enumerate(values)
        if not np.isnan(value)
    ]


def main(arguments: argparse.Namespace) -> None:
    calls = read_calls(arguments.prompts)
    beyond = [index for index in arguments.indices if index >= len(calls)]
    if beyond:
        raise ValueError(f"{arguments.prompts}: no prompts {beyond} of {len(calls)}")
    plans = {Path(path).parent.name: Plan.load(path) for path in arguments.plans}
    kernel = Kernel.load(arguments.kernel)
    pipe = loaded(arguments, [calls[i] for i in arguments.indices])
    found = []
    for index in tqdm(arguments.indices, desc="errors", unit="prompt"):
        call = {**arguments.arguments, **opened(calls[index])}
        seed = image_seed(arguments.seed, index)
        every = measured(pipe, call, seed, plans, arguments.anchor_device)
        found += [
            row for label, errors in every for row in rows(label, plans[label], errors, index)
        ]
    for label, plan in plans.items():
        found += rows(label, plan, predicted(plan, kernel))
    write_table(pd.DataFrame(found).astype({"prompt_index": "Int64"}), arguments.table)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("errors", description=__doc__)
    add_pipeline(parser)
    parser.add_argument("--plans", nargs="+", required=True, help="files LABEL/BUDGET.safetensors")
    parser.add_argument("--kernel", required=True, help="second moments of the output tap")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--indices", nargs="+", type=int, required=True, help="of the prompts")
    parser.add_argument("--seed", type=int, required=True, help="of the experiment")
    parser.add_argument("--anchor-device", nargs="?", help="where features are kept, such as cpu")
    parser.add_argument("--table", required=True, help="CSV to write")
    run(
        main, parser, outputs=["table"], inputs=["plans", "kernel"], sources=["prompts"],
        models=["model"],
    )  # fmt: skip
