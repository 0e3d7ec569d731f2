"""Tiny pipelines with random weights, one for each configuration that the cache is proven on.

`ZOO[name]()` builds the pipeline and returns a `Case`. A case is called with the number of a
prompt: `case(0)` samples with the inputs and the seed of prompt 0.
"""

from dataclasses import dataclass, field

import torch

from . import flux, image, stable, video
from .parts import STEPS, Draw, seeded

DENOISERS = (
    "transformer", "transformer_2", "unconditional_transformer", "unet", "controlnet",
)  # fmt: skip


@dataclass
class Case:
    """A pipeline and what it is called with."""

    name: str
    pipe: object = field(repr=False)
    inputs: object = field(repr=False)

    @property
    def stateful(self) -> bool:
        """Whether the pipeline's guidance remembers the networks' outputs of earlier steps."""
        return getattr(getattr(self.pipe, "guider", None), "momentum_buffer", None) is not None

    def arguments(self, number: int = 0, **changes) -> dict:
        """Return the arguments of prompt `number`, with a fresh generator."""
        defaults = {"num_inference_steps": STEPS, "output_type": "latent"}
        generator = torch.Generator().manual_seed(number)
        drawn = self.inputs(Draw(number))
        return defaults | {"generator": generator} | drawn | changes

    def prompt(self, number: int) -> dict:
        """Return the arguments that differ from prompt to prompt, as `calibrate` takes them."""
        first, other = self.inputs(Draw(0)), self.inputs(Draw(number))
        return {key: value for key, value in other.items() if not _alike(value, first[key])}

    def shared(self) -> dict:
        """Return the arguments that all prompts share, as `calibrate` takes them."""
        found = {"num_inference_steps": STEPS} | self.inputs(Draw(0))
        own = {*self.prompt(1), "output_type"}
        return {key: value for key, value in found.items() if key not in own}

    def __call__(self, number: int = 0, **changes) -> list[torch.Tensor]:
        """Sample prompt `number` and return all that the pipeline returns, as tensors."""
        arguments = self.arguments(number, **changes)
        with torch.random.fork_rng(devices=[]):  # FluxPipeline gives `step` no generator
            torch.manual_seed(number)
            return tensors(self.pipe(**arguments, return_dict=False))

    def denoisers(self) -> dict[str, torch.nn.Module]:
        """Return the networks that a skipped step must not run, by their names."""
        found = {name: getattr(self.pipe, name, None) for name in DENOISERS}
        return {name: model for name, model in found.items() if model is not None}


def _alike(one, other) -> bool:
    if isinstance(one, (torch.Tensor, list)) and not isinstance(one[0], (str, int)):
        return all(map(torch.equal, tensors([one]), tensors([other])))
    return one == other


def tensors(output) -> list[torch.Tensor]:
    """Return the tensors of what a pipeline returned, images and arrays among them."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in tensors(item)]
    if isinstance(output, dict):  # StableAudioPipeline returns one whatever is asked for
        return tensors(tuple(output.values()))
    if output is None:
        return []
    import numpy as np

    return [torch.from_numpy(np.array(output))]


def _case(name, build):
    torch.set_num_threads(1)
    return Case(name, *seeded(build)())


_BUILDERS = flux.CASES | stable.CASES | image.CASES | video.CASES
ZOO = {name: lambda name=name, build=build: _case(name, build) for name, build in _BUILDERS.items()}
