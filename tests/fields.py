"""A diffusers pipeline whose network is a small formula, to check the closed loop on.

It is called as any pipeline is, encodes prompts with a network, and takes a millisecond a step.
"""

import inspect
import types

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

SIZE = 6


class Field(ModelMixin, ConfigMixin):
    """A velocity field v(x, sigma), float64 `[N, SIZE]`."""

    @register_to_config
    def __init__(self, kind: str = "bent"):
        super().__init__()
        self.law, self.calls = getattr(self, kind), []
        draw = np.random.default_rng(0)
        still, turning = torch.tensor(draw.normal(size=(2, SIZE, SIZE)) / 2)
        self.still, self.turning = nn.Parameter(still, False), nn.Parameter(turning, False)

    def linear(self, x, sigma, text):
        """v = A(sigma) x."""
        return x @ (self.still + np.cos(2 * sigma) * self.turning) + 0.1 * text

    def bent(self, x, sigma, text):
        """A mildly non-linear field."""
        return self.linear(x, sigma, text) + 0.5 * torch.tanh(x.flip(-1) * (1 + sigma))

    def growing(self, x, sigma, text):
        """v = 0.7 x / sigma."""
        return 0.7 * x / max(sigma, 1e-3)

    def constant(self, x, sigma, text):
        """It is the same everywhere and at every step."""
        return text

    def forced(self, x, sigma, text):
        """It does not look at x."""
        waves = torch.arange(1, SIZE + 1, dtype=torch.float64)
        return torch.sin(9 * sigma * waves + text.sum(-1, keepdim=True)) + text

    def forward(self, x, timestep, text):
        self.calls.append(len(x))
        return self.law(x.double(), float(timestep) / 1000, text.double()).to(x.dtype)


class Encoder(ModelMixin, ConfigMixin):
    """A text encoder: letters to `[N, SIZE]`; its output holds None as those of transformers do."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.ones(1, dtype=torch.float64), False), 0

    def forward(self, letters):
        self.calls += 1
        return self.scale * letters, None


class FieldPipeline(DiffusionPipeline):
    """Samples points of a field.

    Args:
        transformer, transformer_2: fields; the second is called from the step `switch` on.
        text_encoder, scheduler: as in other pipelines.
    """

    _optional_components = ("transformer_2",)

    def __init__(self, transformer, text_encoder, scheduler, transformer_2=None):
        super().__init__()
        self.register_modules(
            transformer=transformer, text_encoder=text_encoder, scheduler=scheduler,
            transformer_2=transformer_2,
        )  # fmt: skip
        self.set_progress_bar_config(disable=True)

    @property
    def guidance_scale(self):
        return self._guidance_scale

    @torch.no_grad()
    def __call__(
        self, prompt, num_inference_steps=10, guidance_scale=1.0, passes=1, switch=None,
        one_by_one=False, generator=None, output_type="pil",
    ):  # fmt: skip
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if one_by_one and len(prompts) > 1:
            raise ValueError("one prompt at a time")
        noise = generator if isinstance(generator, list) else [generator]
        self._guidance_scale = guidance_scale
        letters = [[ord((text + " " * SIZE)[i]) / 100 for i in range(SIZE)] for text in prompts]
        text, _ = self.text_encoder(torch.tensor(letters, dtype=torch.float64))
        dtype = self.transformer.still.dtype
        x = torch.stack([torch.randn(SIZE, generator=g, dtype=dtype) for g in noise])
        self.scheduler.set_timesteps(num_inference_steps)
        for step, t in enumerate(self.scheduler.timesteps):
            second = switch is not None and step >= switch
            network = self.transformer_2 if second else self.transformer
            output = network(x, t, text)
            for _ in range(passes - 1):
                output = output + (guidance_scale - 1) * (output - network(x, t, 0 * text))
            more = {"generator": generator} if "generator" in _parameters(self.scheduler) else {}
            x = self.scheduler.step(output, t, x, return_dict=False, **more)[0]
        return types.SimpleNamespace(images=x)


def _parameters(scheduler):
    return inspect.signature(scheduler.step).parameters


def field_pipeline(kind="bent", scheduler=None, second=None, dtype=torch.float64):
    """Return a pipeline whose network follows a law of `Field`."""
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)
    return FieldPipeline(
        Field(kind).to(dtype), Encoder(), scheduler, Field(second).to(dtype) if second else None
    )
