"""diffusers' solvers for flow matching: better steps instead of cached ones."""

import contextlib
import math
from functools import partial
from importlib.metadata import version

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from benchmarks.peers.contestant import Contestant, Study


class Heun(FlowMatchHeunDiscreteScheduler):
    """diffusers' Heun solver on the grid of the pipeline's own Euler solver.

    As it comes, it takes neither the sigmas nor the shift that the FLUX pipeline passes.
    """

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        self.register_to_config(shift=math.exp(mu))  # the exponential shift, written as a factor
        self.sigma_max, self.sigma_min = float(sigmas[0]), float(sigmas[-1])
        super().set_timesteps(len(sigmas), device)


# How diffusers' general solvers are told of a flow-matching model with FLUX's shift.
FLOW = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
}
SOLVERS = {
    "Euler": (FlowMatchEulerDiscreteScheduler, {}),
    "Heun": (Heun, {}),
    "DPM-Solver++ 2M": (DPMSolverMultistepScheduler, FLOW | {"solver_order": 2}),
    "DPM-Solver++ 3M": (DPMSolverMultistepScheduler, FLOW | {"solver_order": 3}),
    "UniPC": (UniPCMultistepScheduler, FLOW | {"solver_order": 2}),
}


def contestants(study: Study) -> list[Contestant]:
    """Return every solver."""
    source, steps = f"diffusers {version('diffusers')}", study.num_steps
    return [
        Contestant(solver, source, partial(applied, solver), partial(setting, solver, steps))
        for solver in SOLVERS
    ]


def setting(solver: str, num_steps: int, budget: int) -> dict | None:
    """Return the steps that take `budget` evaluations of the network.

    Heun takes two a step and one at the last; of an even number it is given one more. At the full
    run's own number there is only the most exact solver, to tell how exact the full run is.
    """
    if budget == num_steps and solver != "DPM-Solver++ 3M":
        return None
    return {"steps": budget // 2 + 1 if solver == "Heun" else budget}


@contextlib.contextmanager
def applied(solver: str, pipe, steps: int):
    """Sample with another solver in so many steps."""
    kind, options = SOLVERS[solver]
    own, pipe.scheduler = pipe.scheduler, kind.from_config(pipe.scheduler.config, **options)
    try:
        yield steps
    finally:
        pipe.scheduler = own
