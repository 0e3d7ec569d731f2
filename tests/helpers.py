"""What several test files share: timesteps, kernels, a tiny random FLUX, copies of the project.

torch is imported only where it is used, so that the tests of planning start at once.
"""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import warm

from eigencache.kernel import Kernel

ROOT = Path(__file__).parents[1]
PARTS = (
    "Snakefile config.yaml pyproject.toml workflow envs profiles eigencache data models results "
    "figures"
)
SECRET = "hf_nobody_must_read_this"
needs_latex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="needs pdflatex and pdftotext: Debian's texlive-latex-recommended and poppler-utils",
)


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

    transformer = tiny_flux()  # which seeds the generator
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


def arguments_of(seed: int) -> dict:
    """Return the prompt of a call of `tiny_pipeline`, which has no text encoders: embeddings."""
    import torch

    draw = torch.Generator().manual_seed(100 + seed)
    return {
        "prompt_embeds": torch.randn(1, 3, 12, generator=draw),
        "pooled_prompt_embeds": torch.randn(1, 10, generator=draw),
    }


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


def pythonpath(folder: Path = ROOT) -> str:
    """Return the PYTHONPATH that a project's own packages are imported by."""
    return f"{folder}{os.pathsep}{folder / 'workflow'}"


def copy_of_project(folder: Path) -> Path:
    """Copy what git holds of the project's parts, without anything that was computed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PARTS.split()],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def snakemake(
    folder: Path, *arguments: str, check: bool = True, environment: Mapping[str, str] | None = None
) -> str:
    """Run snakemake in a folder, with other variables than usual if some are stated.

    Unless they are, it and its jobs start warm.

    Returns:
        what it printed.
    """
    done = subprocess.run(
        [sys.executable if environment else warm.python(), "-m", "snakemake", *arguments],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(folder), "HF_TOKEN": SECRET} | dict(environment or {}),
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def program(
    *arguments: str, folder: Path = ROOT, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` warm and offline, with the packages of a project's folder.

    Args:
        folder: the project.
        cwd: where it runs, if not there.
    """
    return subprocess.run(
        [warm.python(), *arguments], cwd=cwd or folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": pythonpath(folder), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def planned_jobs(printed: str) -> Counter:
    """Return the rules that a dry run would execute, each with its number of jobs."""
    lines = printed.split("Job stats:")[1].splitlines()[3:] if "Job stats:" in printed else []
    rules: Counter = Counter()
    for line in lines:
        if not line.strip() or line.startswith("total"):
            break
        rule, count = line.split()
        rules[rule] = int(count)
    return rules


def compiled(text: str, folder) -> str:
    """Return the words of the pages that pdflatex makes of a document, or fail with its errors."""
    (folder / "table.tex").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search("Overfull|Underfull|Warning|incomplete", done.stdout), done.stdout
    words = subprocess.run(
        ["pdftotext", "-layout", "table.pdf", "-"], cwd=folder, capture_output=True, text=True
    )
    return unicodedata.normalize("NFC", words.stdout)
