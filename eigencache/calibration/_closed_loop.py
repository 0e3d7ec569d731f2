"""Plans that are fitted with the pipeline in the loop."""

from collections.abc import Mapping
from typing import Any

from eigencache.aim import FullRun
from eigencache.calibration._calibration import Calibration
from eigencache.calibration.quality import cheapest, with_prediction
from eigencache.calibration.recording import SPARSE
from eigencache.closed_loop import Base, ClosedLoop, refine
from eigencache.kernel import Kernel, KernelUse
from eigencache.methods import Method
from eigencache.plan import Plan


class ClosedLoopMaker:
    """Makes the plans of a method that are fitted with the pipeline in the loop.

    Args:
        calibration: the calls; the last ones, `held_out` of them, are not fitted: they judge.
        method: one that has a closed loop.
        options: of the method.
        kernel: of the kind that the method wants; by default that of the fitted calls.
        report: called with one line about each plan.

    Raises:
        ValueError: the method has no closed loop, an option is unknown or out of range, or too few
            calls are left to fit on.
    """

    def __init__(
        self, calibration: Calibration, method: Method, options: Mapping[str, Any],
        kernel: Kernel | None = None, report: Any = None,
    ) -> None:  # fmt: skip
        loop = method.parts(1, **options).closed_loop
        if loop is None:
            raise ValueError("the method has no closed loop, so its plans cannot be fitted")
        count = len(calibration.calls)
        fitted = loop.fitted(count)
        if kernel is None:  # too few calls are refused before any run
            kind = method.kind(**options).among(fitted)
        self.method, self.options, self.report = method, options, report or (lambda line: None)
        self.loop: ClosedLoop = loop
        self.runs = calibration.simulator(range(fitted), loop.batch, () if kernel else SPARSE)
        self.held_out = calibration.simulator(range(fitted, count), loop.batch, ())
        self.kernel = kernel or calibration.kernel(kind, loop.batch, self.runs)
        self.judge = calibration.judge(count - fitted, self.held_out)

    def setting(self, full_steps: int) -> tuple[Plan, Base]:
        """Return the plan of a budget in open loop, and what the closed loop corrects.

        Raises:
            ValueError: the budget cannot be met.
            PlanError, KernelError: the kernel is of another kind or tap.
        """
        parts = self.method.parts(full_steps, **self.options)
        timesteps = self.runs.timesteps
        plan = self.method.open_loop(full_steps, timesteps, self.kernel, **self.options)
        kernel = (parts.use or KernelUse()).of(self.kernel.at(timesteps))
        run = FullRun(kernel.matrix(), self.runs.step_sizes, *kernel.response)
        return plan, Base(parts.predictor, run, parts.aim)

    def plan(self, full_steps: int) -> Plan:
        """Return the plan of a budget, fitted, with its predicted PSNR.

        Raises:
            ValueError, PlanError, KernelError: as `setting` says.
        """
        plan, base = self.setting(full_steps)
        plan = refine(plan, base, self.runs, self.held_out, self.loop)
        plan = with_prediction(plan, self.judge)
        self.report(
            f"{full_steps} full steps {list(plan.full_steps)}: predicted PSNR "
            f"{plan.predicted_psnr:.2f} dB; {plan.source['closed loop']}"
        )
        return plan

    def cheapest(self, psnr: float) -> Plan:
        """Return the plan of the fewest full steps that is predicted to give `psnr` dB.

        Raises:
            ValueError: none that skips a step is.
        """
        budgets = self.method.budgets(len(self.runs), self.runs.switches, **self.options)
        return cheapest(self.plan, psnr, budgets)
