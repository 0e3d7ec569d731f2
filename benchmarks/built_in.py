"""Built-in plans on models that they were not made from, beside what needs no calibration either.

    python -m benchmarks.built_in OUT.csv data/emoji-flux SMALL/*

The arguments are the table to write, and the models' folders. For each model the built-in plan is
made from the kernels of all others. PSNR is in dB to the model's own full run of as many steps, a
mean over `IMAGES` images of evaluation prompts or classes and seeds that no kernel has seen:
of 8-bit images. Rows that the table has already are kept, so that a run which was stopped goes on.

`fewer steps`, `DPM++ 2M` and `UniPC` (both of diffusers, order 2) sample in as many steps as the
others compute in full. TaylorSeer, HiCache and Spectrum are at the output tap, at the interval that
has as many full steps or the next more: 14 for 13 of 50. Beside these, which need no calibration
either, `EigenCache-design, one image` is calibrated on one prompt or class of the model itself.
`benchmarks.peers.small` adds the rows of cache-dit, in its own environment.
Rows of methods that end in "steps free" are from when full steps could be placed anywhere
(`Aim.near`), those that end in "steps moved" from when full steps of built-in plans were moved, and
those that end in "all scales" from when these were made from runs at all guidance scales. With
"one start", full steps of plans of one image began with one set of even places, not two.
"""

import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from benchmarks.rows import append, command_line, read
from eigencache import built_in, cached
from eigencache.calibration import Calibration
from eigencache.kernel import OUTPUT, Kernel
from eigencache.methods import METHODS
from eigencache.plan import Plan
from training.kernels import Subject, subject_of

IMAGES, SEED = 4, 7
CELLS = ((50, 5), (50, 7), (50, 9), (50, 13), (28, 7), (28, 9))
GUIDANCE = (1.0, 3.0, 5.0)
SOLVERS = {"DPM++ 2M": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}
FORMULAS = {
    "TaylorSeer": ("TaylorSeer", {}),
    "TaylorSeer, order 2": ("TaylorSeer", {"order": 2}),
    "HiCache": ("HiCache", {}),
    "Spectrum": ("Spectrum", {}),
}
METHOD = "EigenCache built in"
ONE_IMAGE = "EigenCache-design, one image"
PEERS = ("fewer steps", *SOLVERS, *FORMULAS)
METHODS_COMPARED = (*PEERS, METHOD, ONE_IMAGE)
COLUMNS = ("model", "steps", "full_steps", "guidance", "method", "psnr")


class Bench:
    """One model's full runs, and what others come to beside them."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.pipe = subject, subject.pipe
        self.full: dict[tuple[float, int], torch.Tensor] = {}
        self.timesteps: dict[int, Any] = {}
        self.kernels: dict[tuple[float, int], Kernel] = {}

    def sample(self, guidance: float, steps: int, which: slice = slice(None)) -> torch.Tensor:
        """Return the images, or some of them, `[N, 3, H, W]` of 8 bits, from 0 to 1."""
        every = self.subject.arguments(guidance, IMAGES, True, steps)
        arguments = {k: v[which] if isinstance(v, list) else v for k, v in every.items()}
        with torch.no_grad():
            made = self.pipe(**arguments, output_type="latent").images
            if self.subject.prompts:
                vae, side = self.pipe.vae, self.subject.own["height"]
                latents = self.pipe._unpack_latents(made, side, side, self.pipe.vae_scale_factor)
                latents = latents / vae.config.scaling_factor + vae.config.shift_factor
                made = vae.decode(latents, return_dict=False)[0]
        return ((made.clamp(-1, 1) + 1) * 127.5).round() / 255

    def psnr(self, guidance: float, steps: int, method: str, full_steps: int) -> float:
        """Return the mean PSNR of a method's images to those of the full run."""
        self.reference(guidance, steps)
        return self.beside(self._made(guidance, steps, method, full_steps), guidance, steps)

    def reference(self, guidance: float, steps: int) -> torch.Tensor:
        """Return the images of the full run."""
        key = guidance, steps
        if key not in self.full:
            self.full[key] = self.sample(guidance, steps)
            self.timesteps[steps] = self.pipe.scheduler.timesteps.double().numpy()
        return self.full[key]

    def beside(self, made: torch.Tensor, guidance: float, steps: int) -> float:
        """Return the mean PSNR of images to those of the full run."""
        error = (made - self.reference(guidance, steps)).square().flatten(1).mean(1)
        return float((-10 * error.clamp(min=1e-9).log10()).mean())

    def _made(self, guidance: float, steps: int, method: str, full_steps: int) -> torch.Tensor:
        if method == "fewer steps":
            return self.sample(guidance, full_steps)
        if method in SOLVERS:
            own = self.pipe.scheduler
            try:
                self.pipe.scheduler = SOLVERS[method].from_config(own.config, **options_of(own))
                return self.sample(guidance, full_steps)
            finally:
                self.pipe.scheduler = own
        if method in FORMULAS:
            with cached(self.pipe, self._formula(*FORMULAS[method], steps, full_steps)):
                return self.sample(guidance, steps)
        if method == ONE_IMAGE:
            kernel = self._kernel(guidance, steps)
            plan = METHODS["EigenCache-design"].plan(full_steps, kernel.timesteps, kernel)
            with cached(self.pipe, plan):
                return self.sample(guidance, steps)
        others = [s for s in built_in.sources() if s.model != self.subject.name]
        with (
            patch.object(built_in, "sources", lambda: others),
            cached(self.pipe, full_steps=full_steps) as stats,
        ):
            made = self.sample(guidance, steps)
        assert stats.full == full_steps, stats
        return made

    def _kernel(self, guidance: float, steps: int) -> Kernel:
        """Return the model's own kernel, of one image."""
        key = guidance, steps
        if key not in self.kernels:
            call = self.subject.arguments(guidance, 1, num_steps=steps)
            del call["generator"]
            self.kernels[key] = Calibration(self.pipe, [call], {}, SEED).kernel(OUTPUT)
        return self.kernels[key]

    def _formula(self, name: str, options: dict, steps: int, full_steps: int) -> Plan:
        for budget in range(full_steps, steps + 1):
            try:
                return METHODS[name].plan(budget, self.timesteps[steps], tap="output", **options)
            except ValueError:  # no interval has this number
                continue
        raise ValueError(f"{name} has no interval of {full_steps} full steps or more")


def options_of(scheduler: Any) -> dict[str, Any]:
    """Return what turns the configuration of a scheduler into that of a solver of order 2."""
    options: dict[str, Any] = {"solver_order": 2}
    if hasattr(scheduler, "alphas_cumprod"):
        return options
    options |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if scheduler.config.use_dynamic_shifting:
        return options | {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
    return options | {"flow_shift": scheduler.config.shift}


def rows_of(subject: Subject, done: set[tuple]) -> Iterator[tuple]:
    """Yield the rows of a model that are not done."""
    bench = Bench(subject)
    for guidance in GUIDANCE:
        for steps, full_steps in CELLS:
            for method in METHODS_COMPARED:
                key = subject.name, steps, full_steps, guidance, method
                if key not in done:
                    yield *key, round(bench.psnr(guidance, steps, method, full_steps), 3)


def summary(rows: list[dict]) -> str:
    """Return, for each model, how far EigenCache's plans are above the best peer."""
    cells: dict[tuple, dict[str, float]] = {}
    for row in rows:
        key = row["model"], row["steps"], row["full_steps"], row["guidance"]
        cells.setdefault(key, {})[row["method"]] = float(row["psnr"])
    told = []
    for model, method in product(dict.fromkeys(key[0] for key in cells), (METHOD, ONE_IMAGE)):
        gains = [
            cell[method] - max(cell[peer] for peer in PEERS)
            for key, cell in cells.items()
            if key[0] == model and {*METHODS_COMPARED} <= {*cell}
        ]
        if gains:
            mean, below = sum(gains) / len(gains), sum(gain < 0 for gain in gains)
            told.append(
                f"{model}, {method}: {mean:+.1f} dB in the mean of {len(gains)} cells, from "
                f"{min(gains):+.1f} to {max(gains):+.1f}, {below} below the best peer"
            )
    return "\n".join(told)


def main() -> None:
    """Fill the table."""
    arguments = command_line(__doc__)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    kinds = (str, int, int, float, str)
    done = {
        tuple(kind(row[name]) for kind, name in zip(kinds, COLUMNS[:5], strict=True))
        for row in read(arguments.out)
    }
    made = (row for folder in arguments.models for row in rows_of(subject_of(folder), done))
    append(arguments.out, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in made))
    print(summary(read(arguments.out)))


if __name__ == "__main__":
    main()
