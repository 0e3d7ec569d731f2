"""Make a plan from a kernel: which steps are computed in full, and how the others are forecast.

Most methods need the kernel alone and take seconds. EigenCache, the method in closed loop, tries
its plans on the model, and so does --psnr with any method: state the --model and the calibration
--prompts then. The seed and the arguments of the call are those of the kernel's calibration.

examples:
  eigencache plan --kernel kernel.safetensors --full-steps 9 --out plan.safetensors

  another method and its options:
  eigencache plan --kernel kernel.safetensors --method TaylorSeer --option order=2 --tap output \\
      --full-steps 9 --out taylorseer.safetensors

  fitted with the model in the loop, with as many full steps as 40 dB are predicted to need:
  eigencache plan --kernel kernel.safetensors --method EigenCache --psnr 40 \\
      --model data/emoji-flux --prompts data/prompts/emoji-calibration.txt --num-prompts 32 \\
      --out plan.safetensors
"""

import argparse
from pathlib import Path

from eigencache.commands._common import Calls, check_file, parsed_options
from eigencache.commands._flags import add_method, add_model, at_least
from eigencache.kernel import Kernel
from eigencache.methods import Method, check_wish, method_of
from eigencache.plan import Plan
from eigencache.sharing import load_kernel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kernel, the method, the budget or quality, and where to write the plan."""
    parser.add_argument(
        "--kernel", metavar="KERNEL", required=True,
        help="file of `eigencache calibrate`, or user/repo of the Hugging Face hub",
    )  # fmt: skip
    add_method(parser)
    wish = parser.add_mutually_exclusive_group(required=True)
    wish.add_argument(
        "--full-steps", type=at_least(1), metavar="N", help="how many steps are computed in full"
    )
    wish.add_argument("--psnr", type=float, metavar="DB", help="or a quality in dB to reach")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="plan to write, .safetensors"
    )
    add_model(parser, required=False)


def run(arguments: argparse.Namespace) -> None:
    """Make the plan, write it, and say what is predicted of it."""
    kernel, method = load_kernel(arguments.kernel), method_of(arguments.method)
    options, full_steps = parsed_options(arguments.options), arguments.full_steps
    steps = len(kernel.timesteps)
    check_wish(method, full_steps, arguments.psnr, arguments.tap, options)
    if full_steps is not None and full_steps > steps:
        raise ValueError(f"--full-steps {full_steps}: the kernel has {steps} steps only")
    check_file(arguments.out)
    if method.closed_loop or arguments.psnr is not None:
        plan = _with_model(arguments, method, kernel, options)
    else:
        plan = method.plan(full_steps, kernel.timesteps, kernel, arguments.tap, **options)
    plan.save(arguments.out)
    told = [f"{arguments.out}: full steps {list(plan.full_steps)} of {steps}", plan.predictions]
    print("; ".join(filter(None, told)))


def _with_model(
    arguments: argparse.Namespace, method: Method, kernel: Kernel, options: dict
) -> Plan:
    """Return a plan that is tried out on the model.

    Raises:
        ValueError: no model or prompts are stated, or the kernel does not say how it was made.
    """
    if arguments.model is None or arguments.prompts is None:
        raise ValueError(
            "state --model and --prompts: the plan is tried on the model with the calibration "
            "prompts"
        )
    seed = kernel.source.get("seed")
    if seed is None or kernel.pipeline is None:
        raise ValueError(
            f"{arguments.kernel}: does not record the arguments that it was calibrated with, as "
            "kernels of older versions do not; calibrate again"
        )
    calls, tap, psnr = Calls(arguments, kernel), arguments.tap, arguments.psnr
    check_wish(method, arguments.full_steps, psnr, tap, options, len(calls))

    from eigencache.calibration import plan_with

    return plan_with(
        calls.calibration(int(seed)), method, arguments.full_steps, psnr=psnr, options=options,
        tap=tap, kernel=kernel,
    )  # fmt: skip
