"""OLSS: optimal linear subspace search (Duan et al., 2023, arXiv 2305.14677).

The latents at the next chosen step are a linear combination of the noise and of all outputs so far,
with the coefficients of least squares on the full runs: they are never sampled with. The steps are
chosen from those of the full run one after the other, each the furthest that an error limit allows,
and the limit is the lowest, by bisection, that the budget can keep. While steps are searched for,
the latents before the step take the place of the noise, as in the authors' code.
"""

import numpy as np

from benchmarks.peers.fitting.solver import Solver
from benchmarks.peers.fitting.teacher import Teacher


class Regression:
    """Least squares among all latents and outputs of the full runs.

    They are reduced to the triangle of a QR decomposition first, which changes no solution.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.steps = len(teacher.outputs)
        latents = teacher.latents.flatten(1).double().numpy()
        outputs = teacher.outputs.flatten(1).double().numpy()
        self.size = latents.shape[1]
        triangle = np.linalg.qr(np.concatenate([latents, outputs]).T, mode="r")
        self.latents, self.outputs = triangle[:, : self.steps + 1], triangle[:, self.steps + 1 :]

    def solve(self, start: int, used: list[int], target: int) -> tuple[np.ndarray, float]:
        """Return the coefficients for the latents `target`, and their mean square error.

        Args:
            start: the step whose latents are drawn on, besides the outputs of the steps `used`.
        """
        columns = np.column_stack([self.latents[:, start], self.outputs[:, used]])
        found = np.linalg.lstsq(columns, self.latents[:, target], rcond=None)[0]
        error = columns @ found - self.latents[:, target]
        return found, float(error @ error) / self.size

    def path(self, budget: int, limit: float) -> list[int] | None:
        """Return the steps that keep every error below a limit, None if more would be needed."""
        steps = [0]
        while len(steps) <= budget:
            low, high = steps[-1] + 1, self.steps
            while high > low:
                middle = (low + high + 1) // 2
                if self.solve(steps[-1], steps, middle)[1] > limit:
                    high = middle - 1
                else:
                    low = middle
            if low == self.steps:
                return steps
            steps.append(low)
        return None


def olss(teacher: Teacher, budget: int, rounds: int = 40) -> tuple[Solver, list[int]]:
    """Return the solver and its steps."""
    regression = Regression(teacher)
    low, high = 0.0, 10.0
    for _ in range(rounds):
        middle = (low + high) / 2
        if regression.path(budget, middle) is None:
            low = middle
        else:
            high = middle
    steps = regression.path(budget, high)
    assert steps is not None, "an error of 10 allows any step"
    start, weights = np.zeros(len(steps)), np.zeros((len(steps),) * 2)
    for i, target in enumerate([*steps[1:], regression.steps]):
        found, _ = regression.solve(0, steps[: i + 1], target)
        start[i], weights[i, : i + 1] = found[0], found[1:]
    return Solver(teacher.sigmas[steps], start, weights), steps
