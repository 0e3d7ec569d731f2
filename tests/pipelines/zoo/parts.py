"""Parts that the tiny pipelines share: autoencoders, schedulers, random inputs.

Nothing here is downloaded or trained. All weights are random, seeded by `seeded`.
"""

import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before diffusers is imported: no test may download

import diffusers
import torch

STEPS = 8


class Draw:
    """Draws the inputs of one prompt: `draw(1, 5, 12)` is a random tensor `[1, 5, 12]`."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(1000 + seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def image(self, size: int, channels: int = 3, count: int = 1) -> torch.Tensor:
        """Return images `[count, channels, size, size]` with values in 0 ... 1."""
        return torch.rand((count, channels, size, size), generator=self.generator)

    def picture(self, size: int):
        """Return a PIL image, for the pipelines that take nothing else."""
        from PIL import Image

        pixels = (255 * self.image(size)[0]).byte().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels)


def seeded(build):
    """Give the weights that `build` makes the same random values at every call."""

    @functools.wraps(build)
    def built(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs)

    return built


def network(name: str, /, **config) -> torch.nn.Module:
    """Return a network of diffusers by its class's name, in evaluation mode, no weight all zero.

    Many networks start with zeros in their last layer, in their gates or in the branch of a
    ControlNet. The output would then be zero, and a test of what is cached would test nothing.
    """
    model = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return model.requires_grad_(False)


def autoencoder(channels: int = 4, blocks: int = 2, **config) -> torch.nn.Module:
    """Return an `AutoencoderKL` with `channels` latents, `2 ** (blocks - 1)` pixels to a latent."""
    defaults = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "block_out_channels": (4,) * blocks,
        "latent_channels": channels,
        "norm_num_groups": 2,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }
    return network("AutoencoderKL", **defaults | config)


def video_autoencoder(channels: int = 4, **config) -> torch.nn.Module:
    """Return Wan's autoencoder: 8 pixels and 4 frames to a latent."""
    defaults = {
        "base_dim": 3,
        "z_dim": channels,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
    }
    return network("AutoencoderKLWan", **defaults | config)


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_DYNAMIC = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
_SCHEDULERS = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "dynamic": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow dpm": ("DPMSolverMultistepScheduler", _FLOW),
    "flow sde": ("DPMSolverMultistepScheduler", _FLOW | {"algorithm_type": "sde-dpmsolver++"}),
    "flow unipc": ("UniPCMultistepScheduler", _FLOW),
    "dynamic dpm": ("DPMSolverMultistepScheduler", _FLOW | _DYNAMIC),
    "dynamic sde": (
        "DPMSolverMultistepScheduler",
        _FLOW | _DYNAMIC | {"algorithm_type": "sde-dpmsolver++"},
    ),
    "dynamic unipc": ("UniPCMultistepScheduler", _FLOW | _DYNAMIC),
    "ddim": ("DDIMScheduler", _NOISE | {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", _NOISE | {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", _NOISE),
    "discrete euler": ("EulerDiscreteScheduler", _NOISE),
    "unipc": ("UniPCMultistepScheduler", _NOISE),
    "pndm": ("PNDMScheduler", _NOISE | {"skip_prk_steps": True}),
    "discrete heun": ("HeunDiscreteScheduler", _NOISE),
    "lcm": ("LCMScheduler", _NOISE | {"clip_sample": False}),
    "ancestral": ("EulerAncestralDiscreteScheduler", _NOISE),
}


def scheduler(kind: str, **config):
    """Return a scheduler by a short name of the table above, or by its class's name."""
    name, defaults = _SCHEDULERS.get(kind, (kind, {}))
    return getattr(diffusers, name)(**defaults | config)


def pipeline(name: str, /, **components):
    """Return a pipeline of diffusers by its class's name; parts that are not given are None."""
    import inspect

    cls = getattr(diffusers, name)
    empty = inspect.Parameter.empty
    wanted = inspect.signature(cls.__init__).parameters
    missing = {k: None for k, v in wanted.items() if k != "self" and v.default is empty}
    pipe = cls(**missing | components)
    pipe.set_progress_bar_config(disable=True)
    return pipe
