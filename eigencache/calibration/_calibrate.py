"""From a pipeline and prompts to a plan, in one call."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eigencache.calibration._calibration import Calibration
from eigencache.calibration._calls import Call, calls_of
from eigencache.calibration._closed_loop import ClosedLoopMaker
from eigencache.calibration.quality import cheapest, with_prediction
from eigencache.calibration.sampler import check_arguments
from eigencache.kernel import Kernel
from eigencache.methods import Method, check_wish, method_of
from eigencache.plan import Plan

# How many calibration prompts judge plans that are not fitted in closed loop, at most.
JUDGES = 16


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
    method, an aimed design in open loop, costs one full run of every prompt, and two with few full
    steps. EigenCache's closed loop (`method="EigenCache"`) gives better images and costs about four
    times as many network calls for a plan of 9 full steps of 50. Formulas such as "TaylorSeer" cost
    one run.

    The plan is for these arguments. At other timesteps it is refused; design it again from its
    kernel, which `eigencache.Kernel.at` reads at the timesteps of any sampler.

    Args:
        pipe: a pipeline of diffusers, on the device and of the dtype it will be used with.
        prompts: what to calibrate on: texts, or the arguments of each call, such as
            `{"prompt": "make it rain", "image": image}`. In open loop one is enough; the closed
            loop needs two, and better 8 to 32. None should be used to judge the result.
        full_steps: how many of the steps are computed in full. State this or `psnr`.
        psnr: a quality in dB; the plan has as few full steps as are predicted to give it, of the
            numbers that the method can have. The last prompts, half of them and 16 at most, judge;
            they are kept from the closed loop's fit. Of a formula, which is not fitted, all do.
        method: a name of `eigencache.METHODS`.
        options: of the method, such as `{"order": 2}`; `METHODS[method].options` names them.
        tap: where features are taken, of `eigencache.plan.TAPS`; by default the method's.
        seed: of the calibration's noise; prompt `i` has `sampler.image_seed(seed, i)`.
        arguments: what the pipeline is called with beside the prompts: `num_inference_steps`,
            `height`, `guidance_scale`, `negative_prompt`, `strength`, `num_frames` ...

    Returns:
        A plan for `eigencache.cached`. It says what is predicted of it: by design the error of
        latents, in closed loop or for a `psnr` the PSNR.

    Raises:
        ValueError: there is no such method, an option is unknown or out of range, the pipeline
            takes no argument of that name, not just one of `full_steps` and `psnr` is stated, the
            quality or the number of full steps is out of reach, or there are too few prompts.
        PlanError: the pipeline does not step a scheduler as diffusers' pipelines do.
    """
    chosen, options = method_of(method), dict(options or {})
    calls = calls_of(prompts)
    check_wish(chosen, full_steps, psnr, tap, options, len(calls))
    parameters = inspect.signature(type(pipe).__call__).parameters
    for name in sorted(arguments.keys() & {*chosen.options} - parameters.keys()):
        raise ValueError(
            f"{name} is an option of {method}: state options={{{name!r}: {arguments[name]!r}}}"
        )
    check_arguments(pipe, calls, arguments)
    steps = arguments.get("num_inference_steps")
    if full_steps is not None and isinstance(steps, int) and full_steps > steps:
        raise ValueError(f"full_steps must lie between 1 and {steps}, got {full_steps}")
    calibration = Calibration(pipe, calls, arguments, seed)
    return plan_with(calibration, chosen, full_steps, psnr=psnr, options=options, tap=tap)


def plan_with(
    calibration: Calibration, method: Method, full_steps: int | None = None, *,
    psnr: float | None = None, options: Mapping[str, Any] | None = None, tap: str | None = None,
    kernel: Kernel | None = None, report: Callable[[str], None] = lambda line: None,
) -> Plan:  # fmt: skip
    """Return the plan of a method for a budget or a quality, as `calibrate` does.

    Args:
        calibration: the calls that it is made on.
        method: of `eigencache.METHODS`.
        full_steps, psnr, options, tap: as for `calibrate`.
        kernel: of the kind that the method wants; by default that of the calls.
        report: called with one line about each plan that is tried on the pipeline.

    Raises:
        ValueError, PlanError: as `calibrate` says.
    """
    options = dict(options or {})
    if method.closed_loop:
        maker = ClosedLoopMaker(calibration, method, options, kernel, report)
        return maker.cheapest(psnr) if full_steps is None else maker.plan(full_steps)  # type: ignore[arg-type]
    count = len(calibration.calls)
    used = kernel or calibration.kernel(
        method.kind(tap, **options).among(count if method.needs_kernel else 1)
    )

    def open_loop(budget: int) -> Plan:
        return method.plan(budget, used.timesteps, used, tap=tap, **options)

    if full_steps is not None:
        return open_loop(full_steps)
    judge = calibration.judge(min(JUDGES, count // 2 if method.needs_kernel else count))

    def judged(budget: int) -> Plan:
        plan = with_prediction(open_loop(budget), judge)
        report(f"{budget} full steps {list(plan.full_steps)}: {plan.predictions}")
        return plan

    budgets = method.budgets(len(used.timesteps), used.switches, **options)
    return cheapest(judged, psnr or 0.0, budgets)
