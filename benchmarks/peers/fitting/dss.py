"""DSS: differentiable solver search (Wang et al., ICML 2025, arXiv 2505.21114).

Every step moves by its length times an affine combination of all outputs so far. The lengths, a
softmax, and the coefficients, whose sum is one, are trained by Lion from Euler's method: to follow
the full run at every step, and to end where it ends. With 6 steps or fewer the last two draw on one
earlier output alone, as in the authors' code.

Two things differ from that code. Lengths are the softmax that the paper has and that the code
trains without using it when it samples. And the full run is interpolated between its points, where
the code takes the nearest.
"""

from functools import partial

import numpy as np
import torch

from benchmarks.peers.fitting.solver import Solver, integrate
from benchmarks.peers.fitting.teacher import Teacher

FEW = 6


class Searched:
    """A DSS solver in training.

    Args:
        start: Euler's method.
    """

    def __init__(self, start: Solver) -> None:
        self.network_calls = count = len(start)
        self.first = float(start.sigmas[0])
        falls = -np.diff([*start.sigmas, 0.0])
        self.lengths = torch.tensor(np.log(falls), dtype=torch.float32, requires_grad=True)
        self.coefficients = torch.zeros(count, count, requires_grad=True)
        self.parameters = [self.lengths, self.coefficients]
        self.allowed = torch.tril(torch.ones(count, count), -1)
        if count <= FEW:
            for i in (count - 2, count - 1):
                self.allowed[i, : i - 1] = 0

    def arrays(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sigmas, `[n + 1]`, and by what each step moves, `[n, n]`."""
        falls = self.first * torch.softmax(self.lengths, 0)
        sigmas = torch.cat([self.first - torch.cumsum(falls, 0) + falls, torch.zeros(1)])
        earlier = self.coefficients * self.allowed
        combination = earlier + torch.diag(1 - earlier.sum(1))
        return sigmas, -falls[:, None] * combination

    def sample(self, teacher: Teacher, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return the latents after each step."""
        sigmas, steps = self.arrays()
        return integrate(
            partial(teacher.velocity, rows), teacher.latents[0, rows], sigmas[:-1],
            torch.ones(len(steps)), torch.cumsum(steps, 0),
        )  # fmt: skip

    def loss(self, teacher: Teacher, rows: torch.Tensor, latents: list[torch.Tensor]):
        """Return the square errors along the way, and a thousand times Huber's at the end."""
        sigmas = self.arrays()[0].detach().double().numpy()
        total = torch.zeros(())
        for sigma, found in zip(sigmas[1:], latents, strict=True):
            total = total + (found - at(teacher, rows, sigma)).square().mean()
        end = torch.nn.functional.huber_loss(latents[-1], teacher.latents[-1, rows], delta=1e-3)
        return total + 1000 * end

    def solver(self) -> Solver:
        """Return what was reached."""
        sigmas, steps = (array.detach().double().numpy() for array in self.arrays())
        return Solver.from_steps(sigmas[:-1], steps)


def at(teacher: Teacher, rows: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the latents of the full run at a sigma, on a line between its points."""
    place = float(np.interp(-sigma, -teacher.sigmas, np.arange(len(teacher.sigmas))))
    low = min(int(place), len(teacher.sigmas) - 2)
    before, after = teacher.latents[low, rows], teacher.latents[low + 1, rows]
    return before + (place - low) * (after - before)
