"""The kernels that the package carries, from runs of the small models.

python -m training.kernels --out eigencache/built_in.safetensors FOLDER ...
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import FluxPipeline

from eigencache.built_in import Source, save_sources
from eigencache.calibration.recording import Recorder, Responses, sparse
from eigencache.kernel import response_of
from eigencache.runtime._driver import Driver, StepCall
from training import data, steps, text
from training.small import ClassPipeline

STEPS = 50
# Runs of a text-to-image pipeline cost more.
RUNS, TEXT_RUNS = 12, 6
GUIDANCE = (1.0, 2.0, 3.0, 5.0)
# The shares of full steps with which responses are measured: more than in calibration, since this
# is done once.
SPARSE = (0.1, 0.14, 0.18, 0.26)


class _Traced(Recorder):
    """Keeps what the scheduler is given."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[torch.Tensor] = []
        self.samples: list[torch.Tensor] = []

    def given(self, call: StepCall) -> None:
        super().given(call)
        self.outputs.append(call.output.double().flatten(1))
        self.samples.append(call.sample.double().flatten(1))


class Traced(NamedTuple):
    """What full runs of a model tell.

    Attributes:
        levels: float64 `[T]`, the noise level before each step.
        runs: of each image its clean samples and noises, float64 `[T, D]` each.
        response: the pull and the scatter, float64 `[T]` each (`eigencache.aim`).
    """

    levels: np.ndarray
    runs: list[tuple[np.ndarray, np.ndarray]]
    response: tuple[np.ndarray, np.ndarray]


def traced(pipe: Any, make: Callable[[], Mapping[str, Any]]) -> Traced:
    """Return what full runs tell, and others with few full steps.

    Args:
        pipe: with a scheduler of flow matching (Euler), or DDIM.
        make: makes the arguments of the call, the same each time.
    """
    policy = _Traced()
    with Driver(pipe, policy):
        pipe(**make(), output_type="latent")
    seen, sizes = np.zeros((3, len(policy.outputs))), policy.step_sizes()
    for share in SPARSE:
        plan = sparse(policy.timesteps, share, ())
        responses = Responses(policy.outputs, sizes, plan, torch.Tensor.detach)
        with Driver(pipe, responses):
            pipe(**make(), output_type="latent")
        seen += responses.seen
    times = torch.from_numpy(policy.timesteps)
    samples, outputs = torch.stack(policy.samples), torch.stack(policy.outputs)
    scheduler = pipe.scheduler
    if hasattr(scheduler, "alphas_cumprod"):
        squares = scheduler.alphas_cumprod.double()[times.long()]
        alpha, sigma = squares.sqrt()[:, None, None], (1 - squares).sqrt()[:, None, None]
        if scheduler.config.prediction_type == "epsilon":
            noise = outputs
            clean = (samples - sigma * noise) / alpha
        else:
            clean, noise = alpha * samples - sigma * outputs, alpha * outputs + sigma * samples
    else:
        sigma = (times / 1000)[:, None, None]
        alpha = 1 - sigma
        clean, noise = samples - sigma * outputs, samples + alpha * outputs
    level = (sigma / (alpha + sigma)).flatten().numpy()
    pairs = zip(clean.unbind(1), noise.unbind(1), strict=True)
    return Traced(level, [(c.numpy(), n.numpy()) for c, n in pairs], response_of(seen))


class Subject:
    """A model with what it is called with.

    Args:
        name: of the model.
        pipe: its pipeline.
        prompts: of a text-to-image pipeline, (calibration, evaluation); None for classes.
        arguments: of each call.
    """

    def __init__(
        self, name: str, pipe: Any, prompts: tuple[list[str], list[str]] | None = None,
        **arguments: Any,
    ) -> None:  # fmt: skip
        self.name, self.pipe, self.prompts, self.own = name, pipe, prompts, arguments

    def arguments(
        self, guidance: float, count: int, evaluation: bool = False, num_steps: int = STEPS
    ) -> dict[str, Any]:
        """Return the arguments of a call that makes `count` images.

        Calibration and evaluation differ in prompts, as far as there are any, and in seeds.
        """
        first = 100_000 if evaluation else 0
        found = self.own | {
            "num_inference_steps": num_steps,
            "generator": [torch.Generator().manual_seed(first + i) for i in range(count)],
        }
        if self.prompts is None:
            labels = [(3 * i + evaluation) % self.pipe.classes for i in range(count)]
            return found | {"class_labels": labels, "guidance_scale": guidance}
        return found | {"prompt": self.prompts[evaluation][:count], "guidance_scale": guidance}


def subject_of(folder: Path) -> Subject:
    """Return the model in a folder: emoji-flux, or a small model."""
    name = folder.name
    if name != "emoji-flux":
        pipe = ClassPipeline.from_pretrained(folder, use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        return Subject(name, pipe)
    calibration, evaluation = (
        Path(f"data/prompts/emoji-{kind}.txt").read_text(encoding="utf-8").splitlines()
        for kind in ("calibration", "evaluation")
    )
    pipe = FluxPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    own = {"height": data.SIZE, "width": data.SIZE, "max_sequence_length": text.TOKENS}
    return Subject(name, pipe, (calibration, evaluation), **own)


def predicts(pipe: Any) -> str:
    """Return what a pipeline's network predicts, one of `eigencache.built_in.KINDS`."""
    return pipe.scheduler.config.get("prediction_type", "flow")


def sources_of(subject: Subject) -> list[Source]:
    """Return the sources of a model, one for each guidance scale."""
    runs = TEXT_RUNS if subject.prompts else RUNS
    found = []
    for guidance in GUIDANCE:
        with torch.no_grad():
            made = traced(subject.pipe, partial(subject.arguments, guidance, runs))
        kind = predicts(subject.pipe)
        found.append(
            Source.of_runs(subject.name, kind, guidance, made.levels, made.runs, made.response)
        )
    return found


def main() -> None:
    """Run the models and write their sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="folders")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: list[Source] = []
    for folder in arguments.models:
        found += sources_of(subject_of(folder))
        steps.say(f"{folder.name}: {len(found)} sources so far")
    save_sources(arguments.out, found)


if __name__ == "__main__":
    main()
