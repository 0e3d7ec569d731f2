"""What several test files share: timesteps, trajectories, kernels, and a tiny random FLUX.

torch is imported only where it is used, so that the tests of planning start at once.
"""

import os

import numpy as np
import pytest

from eigencache.kernel import Kernel

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported


def flow_timesteps(count: int, shift: float = 3.0) -> np.ndarray:
    """Return the timesteps of a flow-matching sampler: 1000 sigma, shifted towards noise."""
    sigma = np.linspace(1, 1 / count, count)
    return 1000 * shift * sigma / (1 + (shift - 1) * sigma)


def random_trajectories(
    timesteps, runs: int = 8, size: int = 20, seed: int = 0, roughness: float = 0.02
) -> np.ndarray:
    """Return features `[runs, T, size]` that vary smoothly with sigma, and a little at random."""
    draw = np.random.default_rng(seed)
    sigma = np.asarray(timesteps) / 1000
    waves = np.stack([np.cos(k * np.pi * sigma) / (1 + k) ** 2 for k in range(6)])
    smooth = np.einsum("rkd,kt->rtd", draw.normal(size=(runs, 6, size)), waves)
    return smooth + roughness * draw.normal(size=smooth.shape)


def kernel_of(trajectories, timesteps, streams=("output",), **kept) -> Kernel:
    """Return the kernel of runs `[runs, T, D]`; stream `i` has the features to the power i + 1."""
    kept = {"tap": "output"} | kept
    kernels = [
        Kernel.of_run({name: run ** (i + 1) for i, name in enumerate(streams)}, timesteps, **kept)
        for run in trajectories
    ]
    return sum(kernels[1:], kernels[0])


def faulty_texts(figure) -> list[str]:
    """Draw a figure and return what is wrong with its texts: which overlap, or leave the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    drawn, draw = [], Text.draw

    def record(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        return draw(text, renderer, *args, **kwargs)

    canvas = FigureCanvasAgg(figure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        canvas.draw()
    renderer, page = canvas.get_renderer(), figure.bbox
    boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in drawn]
    assert boxes, "the figure has no text"
    found = [
        f"{name!r} leaves the page"
        for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]
    for i, (name, box) in enumerate(boxes):
        for other, another in boxes[:i]:
            wide = min(box.x1, another.x1) - max(box.x0, another.x0)
            high = min(box.y1, another.y1) - max(box.y0, another.y0)
            if wide > 1 and high > 1:
                found.append(f"{other!r} and {name!r} overlap")
    return found


@pytest.fixture
def flux():
    """Return a FLUX transformer of two double and two single blocks with random weights."""
    return tiny_flux()


def tiny_flux(**changes):
    """Return a FLUX transformer with random weights, the same at every call."""
    import torch
    from diffusers import FluxTransformer2DModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": False,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**config | changes).eval()


def tiny_pipeline():
    """Return a FLUX pipeline with random weights and no text encoders; a token is 4 pixels wide."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

    transformer = tiny_flux()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler, vae.eval(), None, None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampling(
    model, timesteps, context="cond", seed=0, batch=1, tokens=4, unit=1000, time_dtype=None,
    **arguments,
):  # fmt: skip
    """Sample with Euler steps as FLUX's pipeline does, and yield the model's output at each step.

    The model is given `timestep / unit`, both of `time_dtype`; by default that is the model's, as
    in the pipeline. Other arguments are passed on to the model.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    shapes = (batch, tokens, 16), (batch, 3, 12), (batch, 10)
    x, text, pooled = (torch.randn(shape, generator=draw).to(model.dtype) for shape in shapes)
    ends = np.append(timesteps[1:], 0)
    for timestep, end in zip(timesteps, ends, strict=True):
        with torch.no_grad(), model.cache_context(context):
            velocity = model(
                hidden_states=x,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=torch.full((batch,), float(timestep)).to(time_dtype or model.dtype) / unit,
                img_ids=torch.zeros(tokens, 3),
                txt_ids=torch.zeros(3, 3),
                **{"return_dict": False} | arguments,
            )[0]
        x = x + (end - timestep) / 1000 * velocity
        yield velocity
