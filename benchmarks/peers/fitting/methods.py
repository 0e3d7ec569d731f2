"""The table of what is fitted.

`METHODS` goes from a name to a function of a `Problem` and a budget that returns the coefficients
and what there is to tell of the fit.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.fitting.bns import Bespoke
from benchmarks.peers.fitting.budcache import SEARCHED, Scheduled, sampled, search
from benchmarks.peers.fitting.descent import Descent, Lion
from benchmarks.peers.fitting.dss import Searched
from benchmarks.peers.fitting.gits import gits
from benchmarks.peers.fitting.meter import Meter
from benchmarks.peers.fitting.olss import olss
from benchmarks.peers.fitting.solver import Solver
from benchmarks.peers.fitting.teacher import Teacher
from benchmarks.peers.sampling import Arguments, Case
from eigencache.calibration import Calibration, ClosedLoopMaker
from eigencache.kernel import OUTPUT
from eigencache.methods import METHODS as OURS
from eigencache.plan import Plan


@dataclass
class Problem:
    """What a solver is fitted to.

    Attributes:
        pipe: a FluxPipeline whose scheduler is Euler's.
        cases: all calibration cases.
        seed: from which their noise is.
        arguments: of every call.
        meter: what counts the cost.
        limit: CPU seconds of a gradient descent at most, for each network call of the budget.
        log: where progress goes.
        shared: what several fits need, with what it cost; each fit pays for it.
        used: how many cases a fit has used.
    """

    pipe: Any
    cases: list[Case]
    seed: int
    arguments: Arguments
    meter: Meter
    limit: float
    log: Path
    shared: dict[Any, tuple[Any, Meter]]
    used: int = 0

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made before by this name, or make it; it costs the same."""
        if key in self.shared:
            self.meter.add(self.shared[key][1])
        else:
            with Meter(self.pipe.transformer) as meter:
                made = make()
            self.shared[key] = made, meter
        return self.shared[key][0]

    @cached_property
    def teacher(self) -> Teacher:
        """The full runs of all cases."""
        self.used = len(self.cases)
        teacher = self.once("teacher", lambda: Teacher(self.pipe, self.cases, self.arguments))
        teacher.meter = self.meter
        return teacher

    def descent(self, budget: int, rates: tuple[float, ...], **options: Any) -> Descent:
        """Return a training on half of the cases; the other half is held out.

        The rates are those that are swept at the first budget; the others take what it found.
        """
        for other in self.log.parent.glob("*.json"):
            rates = (json.loads(other.read_text())["rate"],)
        half = len(self.cases) // 2
        fit, judge = torch.arange(half), torch.arange(half, len(self.cases))
        return Descent(fit, judge, rates=rates, limit=budget * self.limit, log=self.log, **options)

    def calibration(self, count: int) -> Calibration:
        """Return the first cases in the form that EigenCache takes."""
        calls = [case for case, _ in self.cases[:count]]
        self.used = max(self.used, len(calls))
        return Calibration(self.pipe, calls, self.arguments, self.seed)

    def euler(self, budget: int) -> Solver:
        """Return the sampler's own method with so many steps."""
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        own, self.pipe.scheduler = self.pipe.scheduler, scheduler
        try:
            with torch.no_grad():
                self.pipe(
                    **self.cases[0][0], **{**self.arguments, "num_inference_steps": budget},
                    output_type="latent",
                )  # fmt: skip
        finally:
            self.pipe.scheduler = own
        return Solver.euler(scheduler.sigmas.double().cpu().numpy())

    def design(self, budget: int, prompts: int) -> Plan:
        """Return EigenCache's open-loop plan from so many prompts."""
        calibration = self.calibration(prompts)
        kernel = self.once(("kernel", prompts), lambda: calibration.kernel(OUTPUT))
        return OURS["EigenCache-design"].plan(budget, kernel.timesteps, kernel)


Fitted = tuple[dict, dict]  # the coefficients, and what there is to tell of the fit


def eigencache(problem: Problem, budget: int, method: str, prompts: int) -> Fitted:
    """Make one of our own plans from so many prompts."""
    if method == "EigenCache":
        calibration = problem.calibration(prompts)
        plan = ClosedLoopMaker(calibration, OURS[method], {}).plan(budget)
    else:
        plan = problem.design(budget, prompts)
    path = problem.log.with_suffix(".safetensors")
    plan.save(path)
    return {"plan": path.name}, {"full_steps": list(plan.full_steps)}


def bns(problem: Problem, budget: int, free: bool, design: bool) -> Fitted:
    """Train a BNS solver, from Euler or from our design, with free sigmas or those of the start."""
    if design:
        start = Solver.from_plan(problem.design(budget, len(problem.cases)))
    else:
        start = problem.euler(budget)
    model = Bespoke(start, free)
    told = problem.descent(budget, (1e-2, 3e-3)).train(model, problem.teacher)
    return model.solver().as_dict(), told


def dss(problem: Problem, budget: int) -> Fitted:
    """Train a DSS solver."""
    model = Searched(problem.euler(budget))
    told = problem.descent(budget, (1e-2, 3e-3), optimizer=Lion).train(model, problem.teacher)
    return model.solver().as_dict(), told


def budcache(problem: Problem, budget: int) -> Fitted:
    """Search a reuse schedule, then train its sigmas."""
    teacher = problem.teacher
    sigmas, rows = torch.tensor(teacher.sigmas, dtype=torch.float32), torch.arange(SEARCHED)

    @torch.no_grad()
    def error(steps: tuple[int, ...]) -> float:
        final = sampled(teacher, rows, sigmas, list(steps))[-1]
        return float((final - teacher.latents[-1, rows]).square().mean())

    full_steps = search(error, len(sigmas) - 1, budget)
    model = Scheduled(teacher.sigmas, full_steps)
    told = problem.descent(budget, (1e-2, 3e-3), optimizer=torch.optim.AdamW).train(model, teacher)
    return {"sigmas": model.sigmas().tolist(), "full_steps": full_steps}, told


def closed_form(fit: Callable, problem: Problem, budget: int) -> Fitted:
    """Fit a solver without gradients and without sampling."""
    solver, full_steps = fit(problem.teacher, budget)
    return solver.as_dict(), {"full_steps": full_steps}


METHODS: dict[str, Callable[[Problem, int], Fitted]] = {
    "EigenCache-optimal": partial(eigencache, method="EigenCache-optimal", prompts=32),
    "EigenCache-design": partial(eigencache, method="EigenCache-design", prompts=32),
    "EigenCache-design, 8 prompts": partial(eigencache, method="EigenCache-design", prompts=8),
    "EigenCache": partial(eigencache, method="EigenCache", prompts=32),
    "EigenCache, 8 prompts": partial(eigencache, method="EigenCache", prompts=8),
    "BNS from Euler": partial(bns, free=True, design=False),
    "BNS from our design": partial(bns, free=True, design=True),
    "BNS from Euler, grid": partial(bns, free=False, design=False),
    "BNS from our design, grid": partial(bns, free=False, design=True),
    "OLSS": partial(closed_form, olss),
    "DSS": dss,
    "GITS + Euler": partial(closed_form, partial(gits, order=1)),
    "GITS + iPNDM": partial(closed_form, partial(gits, order=4)),
    "BudCache": budcache,
}
