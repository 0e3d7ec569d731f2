"""The PSNR that plans predict, and what images come to that no plan has seen.

    python -m benchmarks.quality OUT.csv data/emoji-flux SMALL/*

The arguments are the table to write, and the models' folders: emoji-flux, and small models of
`workflow/rules/small.smk`. Each is calibrated at two guidance scales with `CALIBRATION` prompts or
classes, and plans of several methods and budgets are measured on `EVALUATION` others, with noise of
other seeds. Rows that the table has already are kept, so that a run which was stopped goes on.

A row is a plan of 50 steps at the output tap:

    probe       of plans that a probe makes, as `cached(psnr=...)` does: the number of the one
                prompt that it knows
    predicted   PSNR in dB of 8-bit images to those of full runs: the mean over the last `JUDGES`
                calibration prompts, as `calibrate(psnr=...)` has it; of a probe, over its two
                images, each by the plan of the other
    measured    the mean over the evaluation images
    spread      the standard deviation of one image's PSNR among them: prompts differ by as much
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.rows import append, command_line, read
from eigencache.calibration import Calibration, ClosedLoopMaker, plan_with, probe
from eigencache.calibration._calls import quiet
from eigencache.calibration.quality import Judge
from eigencache.calibration.sampler import image_seed
from eigencache.kernel import OUTPUT, Kernel
from eigencache.methods import METHODS
from eigencache.plan import Plan
from training.kernels import Subject, subject_of

STEPS, GUIDANCE = 50, (1.0, 3.0)
CALIBRATION, JUDGES, EVALUATION, PROBES, BATCH = 32, 16, 32, 3, 8
SEED, CALIBRATION_SEED = 2026, 7
OPEN_LOOP: dict[str, tuple[dict, tuple[int, ...]]] = {
    "EigenCache-design": ({}, (5, 7, 9, 13)),
    "TaylorSeer": ({"order": 1}, (9,)),
    "HiCache": ({}, (9,)),
}
PROBED = "EigenCache-design, probed"
QUICK = [(name, b) for name, (_, budgets) in OPEN_LOOP.items() for b in budgets]
QUICK += [(PROBED, 9), (PROBED, 13)]
SLOW = [("EigenCache", 9)]  # fitted in closed loop, which takes longer than all others
COLUMNS = (
    "model", "guidance", "method", "full_steps", "probe", "predicted", "measured", "spread",
)  # fmt: skip


class Batches(Judge):
    """A judge that makes several images at once, which is cheaper."""

    def _images(self) -> list:
        found: list[np.ndarray] = []
        with quiet(self.pipe):
            for first in range(0, len(self.calls), BATCH):
                some = self.calls[first : first + BATCH]
                made = self.pipe(
                    **joined([call for call, _ in some]), output_type="np",
                    generator=[torch.Generator().manual_seed(seed) for _, seed in some],
                )  # fmt: skip
                found += list((made.images * 255).round().astype(np.uint8))
        return found


def joined(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arguments of one call that makes the images of several."""
    found = dict(calls[0])
    for name in ("prompt", "negative_prompt"):
        if name in found:
            found[name] = [call[name] for call in calls]
    if "class_labels" in found:
        found["class_labels"] = [label for call in calls for label in call["class_labels"]]
    return found


class Bench:
    """One model at one guidance scale.

    Args:
        subject: the model.
        guidance: the scale.
    """

    def __init__(self, subject: Subject, guidance: float) -> None:
        self.subject, self.pipe = subject, subject.pipe
        self.shared: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance}
        self.shared |= subject.own
        calls = self._calls(CALIBRATION, False)
        self.calibration = Calibration(self.pipe, calls, self.shared, CALIBRATION_SEED)
        self.held_out = self._judge(calls[-JUDGES:], self.calibration.seeds[-JUDGES:])
        seeds = [image_seed(SEED, i) for i in range(EVALUATION)]
        self.evaluation = self._judge(self._calls(EVALUATION, True), seeds)

    @cached_property
    def kernel(self) -> Kernel:
        """That of all calibration runs."""
        return self.calibration.kernel(OUTPUT)

    def _calls(self, count: int, evaluation: bool) -> list[dict[str, Any]]:
        if self.subject.prompts is None:
            classes = self.pipe.classes
            return [{"class_labels": [(3 * i + evaluation) % classes]} for i in range(count)]
        prompts = self.subject.prompts[evaluation]
        chosen = np.linspace(0, len(prompts) - 1, count).round().astype(int)
        return [{"prompt": prompts[i]} for i in chosen]

    def _judge(self, calls: list[dict[str, Any]], seeds: list[int]) -> Batches:
        return Batches(self.pipe, [self.shared | call for call in calls], seeds)

    def calibrated(self, method: str, full_steps: int) -> tuple[float, Plan]:
        """Return what a calibrated plan predicts, and the plan."""
        if METHODS[method].closed_loop:
            plan = ClosedLoopMaker(self.calibration, METHODS[method], {}).plan(full_steps)
            return plan.predicted_psnr, plan
        options, _ = OPEN_LOOP[method]
        plan = plan_with(
            self.calibration, METHODS[method], full_steps, options=options, tap="output",
            kernel=self.kernel,
        )  # fmt: skip
        return self.held_out.psnr(plan), plan

    @cached_property
    def probes(self) -> list[probe.Probe]:
        """Those of `cached(psnr=...)`, for each of a few prompts."""
        return [probe.Probe(self.pipe, self.shared | call) for call in self._calls(PROBES, False)]

    def plans(self, method: str, full_steps: int) -> Iterator[tuple[Any, float, Plan]]:
        """Yield a method's plans: of which probe, what is predicted, and the plan."""
        if method != PROBED:
            yield "", *self.calibrated(method, full_steps)
            return
        for i, probed in enumerate(self.probes):
            plan = probed.plan(full_steps)
            yield i, plan.predicted_psnr, plan


def rows_of(
    subject: Subject, guidance: float, wanted: Sequence[tuple[str, int]], done: set[tuple]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a model at a guidance scale that are wanted and not done."""
    todo = [
        (name, budget) for name, budget in wanted
        if (subject.name, f"{guidance:g}", name, str(budget)) not in done
    ]  # fmt: skip
    if not todo:
        return
    bench = Bench(subject, guidance)
    for name, budget in todo:
        for number, predicted, plan in bench.plans(name, budget):
            each = bench.evaluation.each(plan)
            yield {
                "model": subject.name, "guidance": f"{guidance:g}", "method": name,
                "full_steps": budget, "probe": number, "predicted": round(predicted, 2),
                "measured": round(float(np.mean(each)), 2),
                "spread": round(float(np.std(each, ddof=1)), 2),
            }  # fmt: skip


def summary(rows: list[Mapping[str, str]]) -> str:
    """Return how far predictions were off."""
    told = []
    for name, chosen in (
        ("calibrated plans", [r for r in rows if r["method"] != PROBED]),
        ("plans of probes", [r for r in rows if r["method"] == PROBED]),
    ):
        off = np.array([float(r["predicted"]) - float(r["measured"]) for r in chosen])
        if len(off):
            told.append(
                f"{name}: {(np.abs(off) <= 1.5).sum()} of {len(off)} within 1.5 dB, "
                f"{(np.abs(off) <= 2).sum()} within 2; predicted less measured is {off.mean():+.2f}"
                f" dB in the mean, {np.abs(off).max():.1f} at most"
            )
    return "\n".join(told)


def main() -> None:
    """Fill the table."""
    arguments = command_line(__doc__)
    torch.set_num_threads(1)
    done = {tuple(row[name] for name in COLUMNS[:4]) for row in read(arguments.out)}
    cases = product((QUICK, SLOW), arguments.models, GUIDANCE)
    append(
        arguments.out, COLUMNS,
        (row for wanted, folder, guidance in cases
         for row in rows_of(subject_of(folder), guidance, wanted, done)),
    )  # fmt: skip
    print(summary(read(arguments.out)))


if __name__ == "__main__":
    main()
