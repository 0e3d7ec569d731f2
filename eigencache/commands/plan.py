"""Make a plan from a kernel: which steps are computed in full, and how the others are forecast.

Most methods need the kernel alone and take seconds. EigenCache, the method in closed loop, tries
its plans on the model, and so does --psnr with any method: state the --model and the calibration
--prompts then. Seed and settings are those that the kernel was calibrated with.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eigencache.commands._common import (
    add_method,
    add_model,
    loaded,
    parsed_options,
    prompts_of,
    remembered_settings,
    settings_from,
)

if TYPE_CHECKING:
    from eigencache.kernel import Kernel
    from eigencache.methods import Method
    from eigencache.plan import Plan

EXAMPLES = """\
examples:
  eigencache plan --kernel kernel.safetensors --full-steps 9 --out plan.safetensors

  another method and its options:
  eigencache plan --kernel kernel.safetensors --method TaylorSeer --option order=2 --tap output \\
      --full-steps 9 --out taylorseer.safetensors

  fitted with the model in the loop, with as many full steps as 50 dB are predicted to need:
  eigencache plan --kernel kernel.safetensors --method EigenCache --psnr 50 \\
      --model data/emoji-flux --prompts data/prompts/emoji-calibration.txt --num-prompts 32 \\
      --out plan.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kernel, the method, the budget or quality, and where to write the plan."""
    parser.add_argument(
        "--kernel", type=Path, metavar="FILE", required=True, help="of `eigencache calibrate`"
    )
    add_method(parser)
    wish = parser.add_mutually_exclusive_group(required=True)
    wish.add_argument(
        "--full-steps", type=int, metavar="N", help="how many steps are computed in full"
    )
    wish.add_argument("--psnr", type=float, metavar="DB", help="or a quality in dB to reach")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="plan to write, .safetensors"
    )
    add_model(parser, required=False)


def run(arguments: argparse.Namespace) -> None:
    """Make the plan, write it, and say what is predicted of it."""
    from eigencache.calibration import check_wish, method_of
    from eigencache.kernel import Kernel

    kernel, method = Kernel.load(arguments.kernel), method_of(arguments.method)
    options, full_steps = parsed_options(arguments.options), arguments.full_steps
    steps = len(kernel.timesteps)
    check_wish(method, full_steps, arguments.psnr, arguments.tap, steps, options)
    if method.closed_loop or arguments.psnr is not None:
        plan = _with_model(arguments, method, kernel, options)
    else:
        plan = method.plan(full_steps, kernel.timesteps, kernel, arguments.tap, **options)
    _remembering(plan, kernel).save(arguments.out)
    print(f"{arguments.out}: full steps {list(plan.full_steps)} of {steps}{_predictions(plan)}")


def _with_model(
    arguments: argparse.Namespace, method: "Method", kernel: "Kernel", options: dict
) -> "Plan":
    """Return the plan of a method that has to try its plans on the model."""
    from eigencache.calibration import plan_with
    from eigencache.calibration.recording import SEED

    if arguments.model is None or arguments.prompts is None:
        raise ValueError(
            "state --model and --prompts: the plan is tried on the model with the calibration "
            "prompts"
        )
    settings, seed = remembered_settings(kernel.source), kernel.source.get(SEED)
    if settings is None or seed is None:
        raise ValueError(
            f"{arguments.kernel}: does not say with which settings it was calibrated, as older "
            "kernels do not; calibrate again"
        )
    kept = settings_from(arguments, settings)
    pipe, texts = loaded(arguments, prompts_of(arguments), kept)
    return plan_with(
        pipe, texts, kept, int(seed), method, kernel, full_steps=arguments.full_steps,
        psnr=arguments.psnr, tap=arguments.tap, options=options,
    )  # fmt: skip


def _remembering(plan: "Plan", kernel: "Kernel") -> "Plan":
    """Return the plan with the kernel's settings in its `source`, also if it needed no kernel."""
    from dataclasses import replace

    from eigencache.calibration.recording import SETTINGS

    settings = remembered_settings(kernel.source)
    if settings is None or remembered_settings(plan.source) is not None:
        return plan
    return replace(plan, source={**plan.source, SETTINGS: settings})


def _predictions(plan: "Plan") -> str:
    import math

    from eigencache.plan import predicted_latent_error, predicted_psnr

    told = ""
    if not math.isnan(predicted_psnr(plan)):
        told += f"; predicted PSNR {predicted_psnr(plan):.1f} dB"
    if not math.isnan(predicted_latent_error(plan)):
        told += f"; predicted error of latents {predicted_latent_error(plan):.2g}"
    return told
