"""BNS: Bespoke Non-Stationary solvers (Shaul et al., ICML 2024, arXiv 2403.01329).

All coefficients of a `Solver` and, if they are free, the sigmas are trained by Adam, with gradients
through the whole sampling, for the logarithm of the mean square error of the final latents, which
is their PSNR. As in the paper the first sigma is fixed; the others are kept in order by a softmax
over their differences.
"""

from functools import partial

import numpy as np
import torch

from benchmarks.peers.fitting.solver import Solver, integrate
from benchmarks.peers.fitting.teacher import Teacher


class Bespoke:
    """A BNS solver in training.

    Args:
        start: the solver to start from.
        free: whether its sigmas are trained too.
    """

    def __init__(self, start: Solver, free: bool) -> None:
        self.free, self.network_calls = free, len(start)
        self.first = float(start.sigmas[0])
        falls = -np.diff([*start.sigmas, 0.0])
        self.start, self.weights, self.falls = (
            torch.tensor(array, dtype=torch.float32, requires_grad=True)
            for array in (start.start, start.weights, np.log(falls))
        )
        self.parameters = [self.start, self.weights, *([self.falls] if free else [])]

    def sigmas(self) -> torch.Tensor:
        """Return the sigmas, `[n]`."""
        falls = self.first * torch.softmax(self.falls, 0)
        return self.first - torch.cumsum(falls, 0) + falls

    def sample(self, teacher: Teacher, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return the latents after each step."""
        return integrate(
            partial(teacher.velocity, rows), teacher.latents[0, rows], self.sigmas(),
            self.start, self.weights,
        )  # fmt: skip

    def loss(self, teacher: Teacher, rows: torch.Tensor, latents: list[torch.Tensor]):
        """Return the negative mean PSNR of the final latents, in nepers."""
        return -teacher.decibels(rows, latents[-1]).mean() * (np.log(10) / 10)

    def solver(self) -> Solver:
        """Return what was reached."""
        arrays = (self.sigmas(), self.start, torch.tril(self.weights))
        return Solver(*(array.detach().double().numpy() for array in arrays))
