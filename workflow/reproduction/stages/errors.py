"""Errors: what cached runs miss at every step, on a few evaluation prompts, and what was predicted.

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
says what an error inside the network makes of its output. Predicted latents take the sampler to be
an Euler sampler of flow matching, and are left out where it is another.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm

from eigencache.calibration.sampler import Settings, call, image_seed, load_encoded
from eigencache.commands.prompts import read_prompts
from eigencache.design import forecast_errors, latents_errors
from eigencache.kernel import Kernel, KernelError
from eigencache.plan import Plan
from eigencache.runtime import cached
from eigencache.runtime._hooks import Call, forecast
from eigencache.runtime._taps import tapped, tensors, watching
from reproduction.models.check import verified
from reproduction.stages import LOW_MEMORY, run
from reproduction.tables.tables import write_table

FORECAST, LATENTS = "forecast", "latents"
Errors = Mapping[str, np.ndarray]  # quantity to float64 [T], nan where there is none


class OpenLoop:
    """What plans forecast of one stream along an undisturbed run; called with its every feature.

    Features that a later step of some plan draws on are kept, once for all plans.

    Attributes:
        squares: label to step to the squared norms of the forecast's error and of the feature, one
            tensor `[2]`; of steps that forecast the stream.

    Raises:
        ValueError: it is called more often than there are steps.
    """

    def __init__(self, name: str, plans: Mapping[str, Plan], anchor_device: str | None = None):
        self.weights = {label: plan.weights_of(name) for label, plan in plans.items()}
        self.call = Call(anchor_device and torch.device(anchor_device))
        used = np.any([weights != 0 for weights in self.weights.values()], axis=0)
        self.last_use = [max([-1, *np.flatnonzero(column)]) for column in used.T]
        self.anchors, self.step, self.squares = {}, 0, {label: {} for label in plans}

    def __call__(self, feature) -> None:
        if self.step == len(self.last_use):
            raise ValueError("the transformer is called more than once a step: cannot follow it")
        for label, weights in self.weights.items():
            row = weights[self.step]
            terms = [(self.anchors[a], float(row[a])) for a in np.flatnonzero(row)]
            if terms:
                made = forecast(terms, tensors(feature)[0].device, wide=True)
                pairs = list(zip(tensors(made), tensors(feature), strict=True))
                error = sum((ours - true).square().sum() for ours, true in pairs)
                size = sum(true.to(ours.dtype).square().sum() for ours, true in pairs)
                self.squares[label][self.step] = torch.stack([error, size])
        if self.last_use[self.step] > self.step:
            self.anchors[self.step] = _kept(feature, self.call)
        for a in [a for a in self.anchors if self.last_use[a] <= self.step]:
            del self.anchors[a]
        self.step += 1


def _kept(feature, call_: Call) -> tuple[torch.Tensor, ...]:
    return tuple(call_.keep(tensor) for tensor in tensors(feature))


def latents_of(pipe, text: dict, settings: Settings, seed: int) -> np.ndarray:
    """Return the latents after each step of one run, float64 `[T, D]`."""
    kept = []

    def keep(pipe, step, timestep, found):
        kept.append(found["latents"].double().flatten().cpu().numpy())
        return {}

    call(
        pipe, text, settings, [seed], output_type="latent", callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
    )  # fmt: skip
    return np.stack(kept)


def full_run(
    pipe, text: dict, settings: Settings, seed: int, plans: Mapping[str, Plan],
    anchor_device: str | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """Sample one image in full, and forecast its features by every plan on the way.

    Returns:
        The latents after each step, float64 `[T, D]`; and label to the relative error of the
        plan's forecast at each step, float64 `[T]`, nan where it forecasts nothing.
    """
    watched: list[OpenLoop] = []
    with ExitStack() as stack:
        for tap in {plan.tap for plan in plans.values()}:
            there = {k: plan for k, plan in plans.items() if plan.tap == tap and not plan.refresh}
            for name, stream in tapped(pipe.transformer, tap).streams.items() if there else ():
                watched.append(OpenLoop(name, there, anchor_device))
                stack.enter_context(watching(stream, watched[-1]))
        latents = latents_of(pipe, text, settings, seed)
    return latents, {label: _relative(label, watched, len(plan)) for label, plan in plans.items()}


def _relative(label: str, watched: list[OpenLoop], count: int) -> np.ndarray:
    """Return the relative errors of a plan's forecasts, of all streams together."""
    sums = np.zeros((count, 2))
    for stream in watched:
        for step, squares in stream.squares.get(label, {}).items():
            sums[step] += squares.double().cpu().numpy()
    error, size = sums.T
    return np.sqrt(np.divide(error, size, out=np.full(count, np.nan), where=size > 0))


def measured(
    pipe, text: dict, settings: Settings, seed: int, plans: Mapping[str, Plan],
    anchor_device: str | None = None,
) -> Iterator[tuple[str, Errors]]:  # fmt: skip
    """Yield each label and what its plan misses in one image, by quantity.

    Args:
        pipe: from `sampler.load_encoded`, with `text`: the embeddings of the prompt.
        text: with it.
        settings: how to call the pipeline.
        seed: of the noise, from `eigencache.calibration.sampler.image_seed`.
        plans: label to plan.
        anchor_device: where features are kept; by default where they are made.

    Raises:
        PlanError: a plan was made for another sampler or model.
        ValueError: the transformer lacks a tap, or is called more than once a step.
    """
    full, forecasts = full_run(pipe, text, settings, seed, plans, anchor_device)
    for label, plan in plans.items():
        plan.check_timesteps(pipe.scheduler.timesteps.double().cpu().numpy())
        with cached(pipe.transformer, plan, anchor_device):
            latents = latents_of(pipe, text, settings, seed)
        missed = np.sqrt(np.square(latents - full).mean(axis=1))
        yield label, {FORECAST: forecasts[label], LATENTS: missed}


def predicted(plan: Plan, kernel: Kernel, euler: bool = True) -> Errors:
    """Return what a plan will miss, by quantity, told from a kernel; nothing where it cannot be.

    Args:
        plan: of any tap; of those at the output something can be told.
        kernel: of the output tap.
        euler: whether the sampler is an Euler sampler of flow matching.

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
    found = {FORECAST: forecasts}
    return found | {LATENTS: latents_errors(plan, kernel.matrix())} if euler else found


def rows(label: str, plan: Plan, errors: Errors, prompt_index: int | None = None) -> list[dict]:
    """Return the rows of one plan, measured on a prompt or, of no prompt, predicted."""
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
    torch.set_num_threads(arguments.threads)
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts)
    beyond = [index for index in arguments.indices if index >= len(prompts)]
    if beyond:
        raise ValueError(f"{arguments.prompts}: no prompts {beyond} of {len(prompts)}")
    plans = {Path(path).parent.name: Plan.load(path) for path in arguments.plans}
    kernel = Kernel.load(arguments.kernel)
    pipe, texts = load_encoded(
        verified(arguments.model), [prompts[i] for i in arguments.indices], settings,
        arguments.low_memory,
    )  # fmt: skip
    found = []
    for index, text in zip(arguments.indices, tqdm(texts, desc="errors"), strict=True):
        seed = image_seed(arguments.seed, index)
        every = measured(pipe, text, settings, seed, plans, arguments.anchor_device)
        found += [
            row for label, errors in every for row in rows(label, plans[label], errors, index)
        ]
    euler = isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    for label, plan in plans.items():
        found += rows(label, plan, predicted(plan, kernel, euler))
    write_table(pd.DataFrame(found).astype({"prompt_index": "Int64"}), arguments.table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("errors", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--plans", nargs="+", required=True, help="files LABEL/BUDGET.safetensors")
    parser.add_argument("--kernel", required=True, help="second moments of the output tap")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--indices", nargs="+", type=int, required=True, help="of the prompts")
    parser.add_argument("--seed", type=int, required=True, help="of the experiment")
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument("--anchor-device", nargs="?", help="where features are kept, such as cpu")
    parser.add_argument("--table", required=True, help="CSV to write")
    run(
        main, parser, outputs=["table"], inputs=["plans", "kernel"], sources=["prompts"],
        models=["model"],
    )  # fmt: skip
