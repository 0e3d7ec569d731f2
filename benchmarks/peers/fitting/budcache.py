"""BudCache (ICML 2026, arXiv 2606.13496): a searched schedule of reuse, then learned sigmas.

A skipped step reuses what the blocks added to their input at the last full step; the embedding
before them and the projection behind them are computed. First, full steps are searched for by
simulated annealing and then by hill climbing, on the error of the final latents. Then all sigmas
of the sampler are learned by gradients, in order by a softmax; what is reused has no gradient. The
constants are those of the authors' code and of its configuration for FLUX, but for the number of
prompts: the search takes 4 instead of one.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.peers.fitting.teacher import Teacher

HOTTEST, COLDEST, ROUNDS, CLIMBS = 0.05, 1e-5, 200, 20
REACH, FAR = 3, 2  # of hill climbing: places to either side of a step, and random ones
SEARCHED = 4  # prompts


class Reuse:
    """FLUX's transformer, with the change that its blocks make reused where that is asked for."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.change = network, None

    def full(self, **inputs) -> torch.Tensor:
        """Call the network, and keep the change that its blocks made."""
        entered = []
        hook = self.network.norm_out.register_forward_pre_hook(
            lambda module, args: entered.append(args[0])
        )
        try:
            made = self.network(**inputs, return_dict=False)[0]
        finally:
            hook.remove()
        self.change = (entered[0] - self.network.x_embedder(inputs["hidden_states"])).detach()
        return made

    def skipped(self, **inputs) -> torch.Tensor:
        """Return the network's output with the change that was kept."""
        network, dtype = self.network, inputs["hidden_states"].dtype
        parts = [1000 * inputs["timestep"].to(dtype)]
        if inputs.get("guidance") is not None:
            parts.append(1000 * inputs["guidance"].to(dtype))
        embedded = network.time_text_embed(*parts, inputs["pooled_projections"])
        hidden = network.x_embedder(inputs["hidden_states"]) + self.change
        return network.proj_out(network.norm_out(hidden, embedded))


@contextmanager
def reusing(pipe, full_steps: list[int]) -> Iterator[None]:
    """Let a pipeline's network reuse its change except at some of the steps."""
    network, step = pipe.transformer, -1
    reuse, own = Reuse(network), network.forward

    def forward(*args, return_dict=True, **inputs):
        nonlocal step
        if inner:
            return own(*args, return_dict=return_dict, **inputs)
        step += 1
        inner.append(True)
        try:
            made = (reuse.full if step in full_steps else reuse.skipped)(**inputs)
        finally:
            inner.pop()
        return (made,)

    inner: list[bool] = []
    network.forward = forward
    try:
        yield
    finally:
        del network.forward


class Scheduled:
    """The sigmas of a reuse schedule in training.

    Args:
        sigmas: float64 `[T + 1]`, those of the sampler.
        full_steps: of the schedule.
    """

    def __init__(self, sigmas: np.ndarray, full_steps: list[int]) -> None:
        self.full_steps, self.network_calls = full_steps, len(full_steps)
        self.first = float(sigmas[0])
        falls = torch.tensor(-np.diff(sigmas), dtype=torch.float32)
        self.falls = falls.log().requires_grad_()
        self.parameters = [self.falls]

    def sigmas(self) -> torch.Tensor:
        """Return the sigmas, `[T + 1]`."""
        falls = self.first * torch.softmax(self.falls, 0)
        return torch.cat([torch.tensor([self.first]), self.first - torch.cumsum(falls, 0)])

    def sample(self, teacher: Teacher, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return the latents after each step."""
        return sampled(teacher, rows, self.sigmas(), self.full_steps)

    def loss(self, teacher: Teacher, rows: torch.Tensor, latents: list[torch.Tensor]):
        """Return the mean square error of the final latents."""
        return (latents[-1] - teacher.latents[-1, rows]).square().mean()


def sampled(
    teacher: Teacher, rows: torch.Tensor, sigmas: torch.Tensor, full_steps: list[int]
) -> list[torch.Tensor]:
    """Return the latents after each step of a reuse schedule."""
    reuse, latents = Reuse(teacher.network), [teacher.latents[0, rows]]
    for step in range(len(sigmas) - 1):
        inputs = teacher.inputs(rows, latents[-1], sigmas[step])
        made = (reuse.full if step in full_steps else reuse.skipped)(**inputs)
        latents.append(latents[-1] + (sigmas[step + 1] - sigmas[step]) * made)
    return latents[1:]


def search(error: Callable[[tuple[int, ...]], float], count: int, budget: int) -> list[int]:
    """Return the full steps with the lowest error that annealing and hill climbing find.

    Args:
        error: of full steps.
        count: the number of all steps.
        budget: of full steps; a quarter of them are the first steps and do not move.
    """
    draw, known = random.Random(0), {}

    def of(steps: tuple[int, ...]) -> float:
        if steps not in known:
            known[steps] = error(steps)
        return known[steps]

    first = max(1, budget // 4)
    now = tuple([*range(first), *sorted(draw.sample(range(first, count), budget - first))])
    for i in range(ROUNDS):
        heat = HOTTEST * (COLDEST / HOTTEST) ** (i / ROUNDS)
        found = neighbour(now, count, first, draw)
        change = of(found) - of(now)
        if change < 0 or draw.random() < math.exp(-change / heat):
            now = found
    for _ in range(CLIMBS):
        found = min(around(now, count, first, draw), key=of, default=now)
        if of(found) >= of(now):
            break
        now = found
    return list(min(known, key=known.__getitem__))


def neighbour(
    steps: tuple[int, ...], count: int, first: int, draw: random.Random
) -> tuple[int, ...]:
    """Return a schedule in which one step, or sometimes two, has moved, mostly not far."""
    movable, free = [s for s in steps if s >= first], sorted({*range(first, count)} - {*steps})
    if not movable or not free:
        return steps
    if draw.random() < 0.9 or min(len(movable), len(free)) < 2:
        gone = [draw.choice(movable)]
        near = [s for s in free if abs(s - gone[0]) <= REACH] if draw.random() < 0.7 else []
        new = [draw.choice(near or free)]
    else:
        gone, new = draw.sample(movable, 2), draw.sample(free, 2)
    return tuple(sorted({*steps} - {*gone} | {*new}))


def around(
    steps: tuple[int, ...], count: int, first: int, draw: random.Random
) -> set[tuple[int, ...]]:
    """Return the schedules in which one step has moved: to every near place and to some others."""
    found = set()
    for step in steps:
        if step < first:
            continue
        near = range(max(first, step - REACH), min(count, step + REACH + 1))
        far = [draw.randrange(first, count) for _ in range(FAR)]
        found |= {tuple(sorted({*steps} - {step} | {s})) for s in [*near, *far] if s not in steps}
    return found
