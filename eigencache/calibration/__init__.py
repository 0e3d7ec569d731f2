"""Calibration: from a pipeline and prompts to a plan, in one call."""

import difflib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eigencache.calibration.quality import FEWEST, Judge, cheapest, with_prediction
from eigencache.calibration.recording import Kind, record_kernels
from eigencache.calibration.sampler import image_seed
from eigencache.calibration.simulator import Simulator, takes
from eigencache.closed_loop import ClosedLoop, refine
from eigencache.kernel import Kernel, KernelUse
from eigencache.methods import METHODS, Method
from eigencache.plan import Plan, predicted_psnr
from eigencache.schedules import Interval

# What a method that needs no kernel is given, for its timesteps alone.
OUTPUT = Kind("output", "full", "second-moment")
# How many calibration prompts judge plans that are not fitted in closed loop, at most.
JUDGES = 16

Call = Mapping[str, Any]


def calibrate(
    pipe: Any,
    prompts: Sequence[str | Call],
    full_steps: int | None = None,
    *,
    psnr: float | None = None,
    method: str = "EigenCache-design",
    options: Mapping[str, Any] | None = None,
    tap: str | None = None,
    seed: int = 7,
    **arguments: Any,
) -> Plan:
    """Return a plan for a pipeline, made on calibration prompts. Nothing is trained.

    The pipeline is called as it would be called to sample, with the same arguments. The default
    method, optimal design in open loop, costs one full run of every prompt. EigenCache's closed
    loop (`method="EigenCache"`) gives better images and costs about ten times as many network
    calls for a plan of 9 full steps of 50. Formulas such as "TaylorSeer" cost one run.

    The plan is for these arguments. At other timesteps it is refused; design it again from its
    kernel, which `eigencache.Kernel.at` reads at the timesteps of any sampler.

    Args:
        pipe: a pipeline of diffusers, on the device and of the dtype it will be used with.
        prompts: what to calibrate on: texts, or the arguments of each call, such as
            `{"prompt": "make it rain", "image": image}`. 8 to 32 suffice; none should be used to
            judge the result.
        full_steps: how many of the steps are computed in full. State this or `psnr`.
        psnr: a quality in dB; the plan has as few full steps as are predicted to give it. The last
            prompts, half of them and 16 at most, judge; they are kept from the closed loop's fit.
        method: a name of `eigencache.METHODS`.
        options: of the method, such as `{"order": 2}`; `METHODS[method].options` names them.
        tap: where features are taken, of `eigencache.plan.TAPS`; by default the method's.
        seed: of the calibration's noise; prompt `i` has `sampler.image_seed(seed, i)`.
        arguments: what the pipeline is called with beside the prompts: `num_inference_steps`,
            `height`, `guidance_scale`, `negative_prompt`, `strength`, `num_frames` ...

    Returns:
        A plan for `eigencache.cached`. Its `source` says how it was made and what is predicted of
        it: by design the error of latents, in closed loop or for a `psnr` the PSNR.

    Raises:
        ValueError: there is no such method, an option is unknown or out of range, the pipeline
            takes no argument of that name, not just one of `full_steps` and `psnr` is stated, the
            quality or the number of full steps is out of reach, or there are too few prompts.
        PlanError: the pipeline does not step a scheduler as diffusers' pipelines do.
    """
    chosen, options = method_of(method), dict(options or {})
    check_wish(chosen, full_steps, psnr, tap, options)
    calls = calls_of(prompts)
    check_arguments(pipe, calls, arguments)
    loop = chosen.parts(1, **options).closed_loop
    if loop:
        loop.judges(len(calls))
    if psnr is not None and len(calls) < 2:
        raise ValueError("psnr: prompts to judge by and others are needed; state two at least")
    calibration = Calibration(pipe, calls, arguments, seed)
    if loop:
        maker: Any = ClosedLoopMaker(calibration, chosen, options)
        return maker.plan(full_steps) if psnr is None else maker.cheapest(psnr)
    kernel = calibration.kernel(kind_of(chosen, tap, options), chosen.needs_kernel)

    def open_loop(budget: int) -> Plan:
        return chosen.plan(budget, kernel.timesteps, kernel, tap=tap, **options)

    if full_steps is not None:
        return open_loop(full_steps)
    judge = calibration.judge(min(JUDGES, len(calls) // 2))
    budgets = range(FEWEST, len(kernel.timesteps) + 1)
    return cheapest(lambda budget: with_prediction(open_loop(budget), judge), psnr or 0.0, budgets)


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
        """What kernels say of where they come from: the seed, and the plain arguments, as JSON."""
        plain = {k: v for k, v in self.arguments.items() if isinstance(v, int | float | str | bool)}
        return {
            "seed": str(self.seed),
            "arguments": json.dumps(plain, sort_keys=True),
            "pipeline": type(self.pipe).__name__,
            "scheduler": type(self.pipe.scheduler).__name__,
        }

    def simulator(self, indices: Sequence[int], batch: int) -> Simulator:
        """Return the simulator of some of the calls."""
        latent = {"output_type": "latent"} if takes(self.pipe, "output_type") else {}
        return Simulator(
            self.pipe, [self.calls[i] for i in indices], [self.seeds[i] for i in indices],
            self.arguments | latent, batch,
        )  # fmt: skip

    def kernel(self, kind: Kind, needed: bool = True, batch: int = 16) -> Kernel:
        """Return the kernel of a kind; of one call alone if it is not `needed` for its values."""
        indices = range(len(self.calls) if needed else 1)
        if kind[:3] == OUTPUT[:3]:
            return self.simulator(indices[: kind.runs], batch).kernel(self.source)
        (kernel,) = self.kernels([kind], indices)
        return kernel

    def kernels(self, kinds: list[Kind], indices: Sequence[int] | None = None) -> list[Kernel]:
        """Return kernels of several kinds, from one full run of every call."""
        indices = range(len(self.calls)) if indices is None else indices
        return record_kernels(
            self.pipe, [self.arguments | dict(self.calls[i]) for i in indices],
            [self.seeds[i] for i in indices], kinds, self.source,
        )  # fmt: skip

    def judge(self, count: int) -> Judge:
        """Return what judges plans by the last so many calls."""
        return Judge(
            self.pipe, [self.arguments | dict(call) for call in self.calls[-count:]],
            self.seeds[-count:],
        )  # fmt: skip


class ClosedLoopMaker:
    """Makes the plans of a method that are fitted with the pipeline in the loop.

    Args:
        calibration: the calls; the last ones, `held_out` of them, are not fitted: they judge.
        method: one that has a closed loop.
        options: of the method.
        kernel: of the kind that the method wants; by default that of the fitted calls.
        report: called with one line about each plan.

    Raises:
        ValueError: the method has no closed loop, an option is unknown or out of range, or so
            many calls are held out that none is left to fit on.
    """

    def __init__(
        self, calibration: Calibration, method: Method, options: Mapping[str, Any],
        kernel: Kernel | None = None, report: Any = None,
    ) -> None:  # fmt: skip
        loop = method.parts(1, **options).closed_loop
        if loop is None:
            raise ValueError("the method has no closed loop, so its plans cannot be fitted")
        count = len(calibration.calls)
        held_out = loop.judges(count)
        self.method, self.options, self.report = method, options, report or (lambda line: None)
        self.loop: ClosedLoop = loop
        self.runs = calibration.simulator(range(count - held_out), loop.batch)
        self.held_out = calibration.simulator(range(count - held_out, count), loop.batch)
        self.kernel = kernel or self.runs.kernel(calibration.source)
        self.judge = calibration.judge(held_out)

    def plan(self, full_steps: int) -> Plan:
        """Return the plan of a budget, fitted, with its predicted PSNR.

        Raises:
            ValueError: the budget cannot be met.
            PlanError, KernelError: the kernel is of another kind or tap.
        """
        parts = self.method.parts(full_steps, **self.options)
        timesteps = self.runs.timesteps
        plan = self.method.open_loop(full_steps, timesteps, self.kernel, **self.options)
        matrix = (parts.use or KernelUse()).of(self.kernel.at(timesteps)).matrix()
        plan = refine(plan, parts.predictor, matrix, self.runs, self.held_out, self.loop)
        plan = with_prediction(plan, self.judge)
        self.report(
            f"{full_steps} full steps {list(plan.full_steps)}: predicted PSNR "
            f"{predicted_psnr(plan):.2f} dB; {plan.source['closed loop']}"
        )
        return plan

    def cheapest(self, psnr: float) -> Plan:
        """Return the plan of the fewest full steps that is predicted to give `psnr` dB.

        Raises:
            ValueError: not even with every step full would it.
        """
        return cheapest(self.plan, psnr, range(FEWEST, len(self.runs) + 1))


def method_of(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def check_wish(
    method: Method, full_steps: int | None, psnr: float | None, tap: str | None,
    options: Mapping[str, object],
) -> None:  # fmt: skip
    """Raise a ValueError that says what is wrong with what is asked of a method, before any work.

    Args:
        method: that is asked for a plan.
        full_steps: the budget, or None.
        psnr: the quality in dB, or None.
        tap: where features are to be taken, or None.
        options: of the method.
    """
    if (full_steps is None) == (psnr is None):
        raise ValueError("state either full_steps, a number of steps, or psnr, a quality in dB")
    if full_steps is not None and full_steps < 1:
        raise ValueError(f"full_steps must be at least 1: {full_steps}")
    if psnr is not None and not (math.isfinite(psnr) and psnr > 0):
        raise ValueError(f"psnr must be a finite number of dB above 0, got {psnr}")
    if psnr is not None and method.schedule is Interval:
        raise ValueError(
            "psnr: an interval does not give every number of full steps; state full_steps, or "
            "choose a method that has no interval, such as EigenCache-design"
        )
    if method.closed_loop and tap not in (None, method.tap):
        raise ValueError(f"tap: the closed loop is for {method.tap!r}, not for {tap!r}")
    method.parts(full_steps or FEWEST, **options)


def kind_of(method: Method, tap: str | None, options: Mapping[str, object]) -> Kind:
    """Return the kind of kernel that a method wants with these options."""
    use = method.parts(1, **options).use
    if use is None:
        return OUTPUT
    return Kind(tap or method.tap, use.features, use.normalisation, use.runs)


def calls_of(prompts: Sequence[str | Call]) -> list[Call]:
    """Return the arguments of each call from prompts or such arguments.

    Raises:
        ValueError: a prompt is neither a text nor named arguments, or empty; or there are none.
    """
    if isinstance(prompts, str | Mapping):
        raise ValueError("prompts must be a list, got a single one")
    calls: list[Call] = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping) and prompt:
            calls.append(dict(prompt))
        elif isinstance(prompt, str) and prompt.strip():
            calls.append({"prompt": prompt})
        else:
            raise ValueError(
                f"prompts[{i}] must be a text or the arguments of a call, not empty: {prompt!r}"
            )
    if not calls:
        raise ValueError("there are no prompts to calibrate on")
    return calls


def check_arguments(pipe: Any, calls: Sequence[Call], arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError if a pipeline cannot be called with these arguments, and say why.

    Args:
        pipe: a pipeline of diffusers.
        calls: the arguments that are each call's own.
        arguments: those that all calls share.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in sorted({*arguments, *(name for call in calls for name in call)}):
        if name in ("generator", "output_type", "return_dict", "callback_on_step_end"):
            raise ValueError(f"{name}: it is stated by the calibration itself; leave it out")
        if name not in parameters:
            near = difflib.get_close_matches(name, [*parameters][1:], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{type(pipe).__name__} takes no argument {name!r}{hint}")
