"""What a plan is made on: a pipeline, calls of it, and what they tell."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from eigencache._checks import joined
from eigencache.calibration._calls import Call, output_as
from eigencache.calibration.quality import Judge
from eigencache.calibration.recording import SPARSE, record_kernels
from eigencache.calibration.sampler import image_seed
from eigencache.calibration.simulator import Simulator
from eigencache.kernel import OUTPUT, Kernel, Kind
from eigencache.runtime._guidance import is_scale


class Calibration:
    """The calls that a plan is made on.

    Args:
        pipe: a pipeline of diffusers.
        calls: the arguments that are each call's own, from `calls_of`.
        arguments: those that all calls share.
        seed: of the noise: call `i` has `sampler.image_seed(seed, i)`.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Call], arguments: Mapping[str, Any], seed: int
    ) -> None:
        self.pipe, self.calls, self.arguments, self.seed = pipe, calls, dict(arguments), seed
        self.seeds = [image_seed(seed, index) for index in range(len(calls))]

    @property
    def source(self) -> dict[str, str]:
        """What kernels say of where they come from."""
        return {"seed": str(self.seed), "dtype": str(self.pipe.dtype).removeprefix("torch.")}

    @property
    def belongs(self) -> dict[str, Any]:
        """What kernels and plans belong to: the arguments that are plain, and the classes.

        The defaults of guidance scales are among them. Of numbers that the calls state themselves
        it is the range.
        """
        kind = type(self.pipe)
        said = {
            name: parameter.default
            for name, parameter in inspect.signature(kind.__call__).parameters.items()
            if is_scale(name)
        }
        plain: dict[str, Any] = {
            name: value
            for name, value in {**said, **self.arguments}.items()
            if isinstance(value, int | float | str)
        }
        for name in set[str]().union(*self.calls):
            found = [call.get(name, plain.get(name)) for call in self.calls]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
                plain[name] = reduce(joined, found)
            else:  # each call has its own, or of some it is not known
                plain.pop(name, None)
        scheduler = type(self.pipe.scheduler).__name__
        return {"arguments": plain, "scheduler": scheduler, "pipeline": kind.__name__}

    def simulator(
        self, indices: Sequence[int], batch: int, sparse: Sequence[float] = SPARSE
    ) -> Simulator:
        """Return the simulator of some of the calls; a kernel needs `sparse`."""
        latent = output_as(self.pipe, "latent")
        return Simulator(
            self.pipe, [self.calls[i] for i in indices], [self.seeds[i] for i in indices],
            self.arguments | latent, batch, sparse,
        )  # fmt: skip

    def kernel(self, kind: Kind, batch: int = 16, runs: Simulator | None = None) -> Kernel:
        """Return the kernel of a kind; of `runs` if these are as many of the first calls."""
        indices = range(len(self.calls))[: kind.runs]
        if kind[:3] == OUTPUT[:3]:
            if runs is None or runs.count != len(indices):
                runs = self.simulator(indices, batch)
            return replace(runs.kernel(self.source), **self.belongs)
        (kernel,) = self.kernels([kind], indices)
        return kernel

    def kernels(self, kinds: list[Kind], indices: Sequence[int] | None = None) -> list[Kernel]:
        """Return kernels of several kinds, from one full run of every call."""
        indices = range(len(self.calls)) if indices is None else indices
        kernels = record_kernels(
            self.pipe, [self.arguments | dict(self.calls[i]) for i in indices],
            [self.seeds[i] for i in indices], kinds, self.source,
        )  # fmt: skip
        return [replace(kernel, **self.belongs) for kernel in kernels]

    def judge(self, count: int, runs: Simulator | None = None) -> Judge:
        """Return what judges plans by the last so many calls, of which `runs` may be the runs."""
        return Judge(
            self.pipe, [self.arguments | dict(call) for call in self.calls[-count:]],
            self.seeds[-count:], runs.recorded() if runs else None,
        )  # fmt: skip
