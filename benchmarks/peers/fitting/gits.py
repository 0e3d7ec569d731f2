"""GITS: geometry-inspired time scheduling (Chen et al., ICML 2024, arXiv 2405.11326).

Only the steps are chosen. A jump of Euler's from one point of a full run to another costs by how
much further it ends from the straight line between noise and image than the full run does. A
dynamic programme finds the steps with the lowest cost, in which what comes later counts 1.15 times
as much with every step.
"""

import numpy as np
import torch

from benchmarks.peers.fitting.solver import Solver
from benchmarks.peers.fitting.teacher import Teacher

GROWTH = 1.15
# Adams and Bashforth's coefficients for equal steps, latest output first.
IPNDM = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def costs(teacher: Teacher) -> np.ndarray:
    """Return the cost of each jump, float64 `[T + 1, T + 1]`, infinite where it goes back."""
    latents, outputs = teacher.latents.flatten(2).double(), teacher.outputs.flatten(2).double()
    line = torch.nn.functional.normalize(latents[-1] - latents[0], dim=-1)

    def deviation(points: torch.Tensor) -> torch.Tensor:
        """Return the distance of each point `[N, D]` from the line, a mean over images."""
        away = latents[-1] - points
        return (away - (away * line).sum(-1, keepdim=True) * line).norm(dim=-1).mean()

    sigmas, count = teacher.sigmas, len(outputs)
    theirs = [float(deviation(points)) for points in latents]
    found = np.full((count + 1, count + 1), np.inf)
    for i in range(count):
        for j in range(i + 1, count + 1):
            jump = latents[i] + (sigmas[j] - sigmas[i]) * outputs[i]
            found[i, j] = float(deviation(jump)) - theirs[j]
    return found


def cheapest(cost: np.ndarray, jumps: int, growth: float = GROWTH) -> list[int]:
    """Return the points of the cheapest way from the first to the last by so many jumps."""
    value, ways = cost[:, -1], []
    for _ in range(jumps - 1):
        total = cost + growth * value[None]
        ways.append(total.argmin(1))
        value = total.min(1)
    points = [0]
    for way in reversed(ways):
        points.append(int(way[points[-1]]))
    return [*points, len(cost) - 1]


def gits(teacher: Teacher, budget: int, order: int) -> tuple[Solver, list[int]]:
    """Return the solver and its steps; of order 1 it is Euler's, above it is iPNDM."""
    points = cheapest(costs(teacher), budget)
    sigmas = teacher.sigmas[points]
    steps = np.zeros((budget, budget))
    for i, length in enumerate(np.diff(sigmas)):
        known = IPNDM[min(i, order - 1)]
        steps[i, i + 1 - len(known) : i + 1] = length * np.array(known[::-1])
    return Solver.from_steps(sigmas[:-1], steps), points[:-1]
