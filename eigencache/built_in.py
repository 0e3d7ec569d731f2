"""Built-in plans: designed from kernels that the package carries, so nothing is calibrated.

A *source* is a small model at one guidance scale. The package keeps of it how the clean sample x0
and the noise e, that it predicts along its runs, resemble each other at any two noise levels. Every
kind of output is a sum of the two, so one source serves every kind and every scheduler whose noise
levels are known: the noise level here is sigma = s / (a + s) of latents a x0 + s e, which is that
of flow matching and runs from 1 to 0.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_range, check_real, check_whole
from eigencache._files import read_arrays, write_arrays
from eigencache.aim import Aim, FullRun
from eigencache.design import fill, spread
from eigencache.kernel import KernelError, spline
from eigencache.methods import holding
from eigencache.plan import Plan
from eigencache.predictors import Kriging

FORMAT = "eigencache-sources-2"
FILE = "built_in.safetensors"
METHOD = "EigenCache built in"
FORECASTS = Kriging(2, 1e-6, ordinary=True)
LEAST = 0.15
# Full steps are not moved: where the sources would have them was wrong for models unlike them. For
# the same reason a gap takes only a part of the estimate.
AIM = Aim(trust=0.85)
# What the outputs of a source hold at noise levels that it never met, as a share of their mean
# square: white noise. Taken for known, outputs there had weights of 60 and more.
UNKNOWN = 1e-4
# What is kept of a source: so many eigenpairs. With 16, plans trusted what had been cut off to be
# nothing, and lost up to 20 dB at 13 full steps.
RANK = 48
ARRAYS = ("sigmas", "clean", "noise", "pull", "scatter")


@dataclass(frozen=True, eq=False)
class Source:
    """Second moments of a model's clean samples and noises, by their factors.

    Attributes:
        model: its name.
        predicts: what it was trained to predict, one of `KINDS`.
        guidance: the scale of classifier-free guidance.
        sigmas: float64 `[G]`, noise levels in (0, 1].
        clean, noise: float64 `[G, R]`: the mean over runs of <x0_s, e_t> is `clean[s] @ noise[t]`,
            and so for the others, where every run is scaled such that noise - clean has a mean
            squared norm of 1.
        pull, scatter: float64 `[G]`, how outputs answer errors of the latents (`eigencache.aim`).
    """

    model: str
    predicts: str
    guidance: float
    sigmas: np.ndarray
    clean: np.ndarray
    noise: np.ndarray
    pull: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of_runs(
        cls, model: str, predicts: str, guidance: float, sigmas: ArrayLike,
        runs: Sequence[tuple[np.ndarray, np.ndarray]], response: tuple[np.ndarray, np.ndarray],
    ) -> "Source":  # fmt: skip
        """Return the source of some runs.

        Args:
            model, predicts, guidance, sigmas: as of the class.
            runs: of each its clean samples and noises, float `[G, D]` each.
            response: the pull and the scatter.
        """
        gram: np.ndarray | float = 0.0
        for clean, noise in runs:
            size = np.square(noise - clean).sum(1).mean()
            rows = np.concatenate([clean, noise]).astype(np.float64)
            gram = gram + rows @ rows.T / size / len(runs)
        values, vectors = np.linalg.eigh(gram)
        factor = (vectors * np.sqrt(np.maximum(values, 0)))[:, : -RANK - 1 : -1]
        sigmas = np.asarray(sigmas, np.float64)
        moments = factor[: len(sigmas)], factor[len(sigmas) :]
        return cls(model, predicts, guidance, sigmas, *moments, *response)

    def beyond(self, sigmas: np.ndarray) -> np.ndarray:
        """Return which noise levels are outside those of the source, bool `[T]`."""
        return (sigmas > self.sigmas.max() + 1e-6) | (sigmas < self.sigmas.min() - 1e-6)

    def at(self, sigmas: np.ndarray) -> "Source":
        """Return the source at other noise levels; beyond its own, all is as at the last."""
        inside = np.clip(sigmas, self.sigmas.min(), self.sigmas.max())
        response, rank = np.stack([self.pull, self.scatter], 1), self.clean.shape[1]
        read = spline(self.sigmas, np.concatenate([self.clean, self.noise, response], 1), inside)
        clean, noise, pull, scatter = np.split(read, [rank, 2 * rank, 2 * rank + 1], 1)
        return replace(
            self, sigmas=sigmas, clean=clean, noise=noise, pull=pull[:, 0],
            scatter=np.maximum(scatter[:, 0], 0),
        )  # fmt: skip


def save_sources(path: str | os.PathLike, sources: Sequence[Source]) -> None:
    """Write sources as safetensors, in float32."""
    arrays, names = {}, []
    for i, source in enumerate(sources):
        names.append(f"{source.model} {source.predicts} {source.guidance:g}")
        for name in ARRAYS:
            arrays[f"{i}/{name}"] = getattr(source, name).astype(np.float32)
    write_arrays(path, arrays, FORMAT, {"sources": "\n".join(names)})


@cache
def sources(path: str | os.PathLike | None = None) -> tuple[Source, ...]:
    """Return the sources that the package carries, or those of a file that `save_sources` wrote."""
    arrays, metadata = read_arrays(path or Path(__file__).with_name(FILE), FORMAT, KernelError)
    found = []
    for i, name in enumerate(metadata["sources"].split("\n")):
        model, predicts, guidance = name.split()
        kept = (arrays[f"{i}/{part}"].astype(np.float64) for part in ARRAYS)
        found.append(Source(model, predicts, float(guidance), *kept))
    return tuple(found)


# What networks may predict: noise - clean sample, the noise, or a noise - s clean sample.
KINDS = ("flow", "epsilon", "v_prediction")


@dataclass(frozen=True)
class Budget:
    """How many steps are computed in full.

    Attributes:
        full_steps: their number; or
        speedup: how many times fewer than the sampler's steps, at least; or
        psnr: a quality in dB, for which a probe finds their number.

    Raises:
        ValueError: not just one of the three is stated, or it is out of range.
    """

    full_steps: int | None = None
    speedup: float | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.full_steps, self.speedup, self.psnr)) != 1:
            raise ValueError(
                "state just one of: a plan, full_steps (a number of steps), speedup (5 computes "
                "one step in five), or psnr (a quality in dB)"
            )
        if self.psnr is not None:
            check_real("psnr", self.psnr, above=0)
        if self.full_steps is not None:
            check_whole("full_steps", self.full_steps, low=1)
        if self.speedup is not None:
            check_range("speedup", self.speedup, 1)

    def of(self, steps: int) -> int:
        """Return how many of a sampler's steps are full; maybe more than there are."""
        if self.full_steps is not None:
            return self.full_steps
        return max(1, int(steps / (self.speedup or 1) + 1e-9))


def fitting(kind: str, models: Sequence[Source]) -> list[Source]:
    """Return the sources of plans for a kind of output.

    A network that predicts the noise says little of the clean sample where nearly all is noise: its
    errors are divided by the small share of the clean sample there. Nor does one of the flow have
    the errors there that a network of the noise has: beside its own kind, it made plans for
    emoji-epsilon 10 dB worse. So only those of the same kind are sources.
    """
    return [source for source in models if source.predicts == kind]


def nearest(guidance: float, models: Sequence[Source]) -> list[Source]:
    """Return of each model the source whose guidance is nearest to a scale, by ratio.

    Without guidance, outputs change far more evenly from step to step, and runs under guidance
    would spoil a plan for it. A scale below 1 is none.
    """
    found: dict[str, list[Source]] = {}
    for source in models:
        found.setdefault(source.model, []).append(source)
    scale = math.log(max(guidance, 1))
    return [min(of, key=lambda s: abs(math.log(s.guidance) - scale)) for of in found.values()]


def _shares_of_v(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    alpha = 1 / np.sqrt(1 + ratio**2)
    return -ratio * alpha, alpha, np.maximum(alpha, LEAST)


class Design:
    """What a built-in plan is designed from, for the steps of one sampler.

    Outputs are scaled here such that they hold the noise with a share of one, as the velocity of
    flow matching and the predicted noise do. Of v the share falls to 0 where all is noise: there it
    is divided by `LEAST`.

    Args:
        kind: of `KINDS`.
        levels: float64 `[T + 1]`, the noise level at each step and after the last.
        timesteps: float64 `[T]`, those that the scheduler is stepped through.
        guidance: the scale that the pipeline is called with; up to 1 there is none.
        models: what to design from.

    Attributes:
        sizes: float64 `[T]`, by how much the latents of flow matching move per unit of an output.
        run: the full runs of the sources at the nearest guidance, each counting the same.
        guidance: the largest scale of these sources.
    """

    def __init__(
        self, kind: str, levels: np.ndarray, timesteps: ArrayLike, guidance: float,
        models: Sequence[Source] | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.timesteps = kind, np.asarray(timesteps, np.float64)
        self.levels = levels[:-1]
        ratio = self.levels / np.maximum(1 - self.levels, 1e-3)  # of noise to clean sample
        # An output is `clean` and `noise` times these, and `scale` is what it is divided by.
        clean, noise, scale = {
            "flow": (-np.ones_like(ratio), np.ones_like(ratio), np.ones_like(ratio)),
            "epsilon": (np.zeros_like(ratio), np.ones_like(ratio), np.ones_like(ratio)),
            "v_prediction": _shares_of_v(ratio),
        }[kind]
        moved = np.diff(levels)
        if (moved == 0).any():  # a second-order sampler sees a level twice
            moved = (np.append(0.0, moved[:-1]) + moved) / 2
        # Of latents that stay as they are, an error of the noise is one of the clean sample too.
        self.sizes = moved * (1 + ratio) / (noise - ratio * clean) * scale
        self.scale = scale
        used = sources() if models is None else models
        found = nearest(guidance, fitting(kind, used))
        self.guidance = max(source.guidance for source in found)
        matrices, responses = [], []
        for source in found:
            read = source.at(self.levels)
            rows = (noise / scale)[:, None] * read.noise + (clean / scale)[:, None] * read.clean
            squares = np.square(rows).sum(1)
            unknown = np.diag(np.where(source.beyond(self.levels), UNKNOWN * squares, 0))
            matrices.append((rows @ rows.T + unknown) / squares.mean())
            responses.append((read.pull / scale, read.scatter / scale))
        self.run = FullRun(matrices, self.sizes, *np.swapaxes(responses, 0, 1))

    def plan(self, full_steps: int, kept: Sequence[int] = ()) -> Plan:
        """Return the plan of a budget, 1 to T, with these steps among the full ones."""
        return self.with_steps(holding(spread(full_steps, len(self.levels)), kept))

    def with_steps(self, full: np.ndarray) -> Plan:
        """Return the plan with these full steps, bool `[T]`."""
        base = fill(full, FORECASTS, self.timesteps, self.run.matrix)
        weights = AIM.weights(full, base, self.run)
        weights = weights * self.scale[:, None] / self.scale[None, :]
        source = {"built in": f"{self.kind} at guidance {self.guidance:g}"}
        return Plan(full, weights, self.timesteps, "output", source=source, method=METHOD)
