"""Small models whose kernels go into the package, for plans that need no calibration.

They are as different as a short training allows: drawn shapes, letters and emoji, in pixel space;
transformers and U-Nets; trained to predict the flow, the noise or v. All are conditional on a
class, so that guidance means something. The small ones take minutes on one CPU core. The others, of
32 px, take a minute or two on a GPU and a night on a CPU: theirs are the trajectories that are hard
to forecast.

    python -m training.small NAME --out FOLDER [--data EMOJI --assets ASSETS]
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.utils import BaseOutput
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional

from training import data, steps, vae

CHUNK = 256  # pictures that are painted at once
DROPPED = 0.1  # of the classes, for guidance
LETTERS = "ABCDEGHKMPRSXZ24"
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralItalic", "cmtt10",
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    """One small model.

    Attributes:
        pictures: what it is trained on, "shapes", "letters", "emoji" or "twemoji".
        predicts: "flow", "epsilon" or "v_prediction".
        iterations: of the training, with batches of `batch` pictures.
        scheduler: options of its scheduler.
        batch: pictures of a training step.
        side: px of its pictures.
        width, layers: of its transformer; with no layers it is a U-Net.
        pool: how many pictures are drawn, once.
        rate: the highest learning rate.
        decay: of the averaged weights, per training step.
    """

    pictures: str
    predicts: str
    iterations: int
    scheduler: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    side: int = 16
    width: int = 96
    layers: int = 4
    pool: int = 4096
    rate: float = 2e-3
    decay: float = 0.995


SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# As of CogVideoX: the first step sees nothing but noise, which only v tells something of.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
LARGER: dict[str, Any] = {
    "batch": 512, "side": 32, "width": 192, "layers": 8, "pool": 65_536, "rate": 1e-3,
    "decay": 0.999,
}  # fmt: skip
MODELS = {
    "shapes-flow": Small("shapes", "flow", 250, {"shift": 1.5}),
    "letters-flow": Small("letters", "flow", 900, {"shift": 3.0}, batch=48),
    "twemoji-flow": Small("twemoji", "flow", 4_200, {"shift": 2.0}, **LARGER),
    "letters-epsilon": Small("letters", "epsilon", 1_800, batch=48),
    "emoji-epsilon": Small("emoji", "epsilon", 4_200, SCALED_LINEAR, **LARGER),
    "shapes-epsilon": Small("shapes", "epsilon", 1_900, **LARGER | {"layers": 0, "pool": 20_000}),
    "letters-v": Small("letters", "v_prediction", 1_800, ZERO_SNR, batch=48),
    "shapes-v": Small("shapes", "v_prediction", 1_200, SCALED_LINEAR | ZERO_SNR),
    "emoji-v": Small("emoji", "v_prediction", 1_500, SCALED_LINEAR, layers=0, width=128),
}


def shapes(
    count: int, draw: np.random.Generator, side: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return pictures `[N, 3, side, side]` of shapes in [-1, 1], their classes and their number.

    A class is a form: polygons of 3 to 6 corners, stars, discs, rings, bars and crosses.
    """
    kinds, large = 10, 4 * side
    labels, pictures = draw.integers(kinds, size=count), np.empty((count, side, side, 3), np.uint8)
    for i, kind in enumerate(labels):
        ground, ink = (tuple(int(v) for v in draw.integers(30, 226, 3)) for _ in range(2))
        picture = Image.new("RGB", (large, large), ground)
        pen = ImageDraw.Draw(picture)
        radius, turn = draw.uniform(0.25, 0.45) * large, draw.uniform(0, 2 * math.pi)
        x, y = (draw.uniform(0.4, 0.6, 2) * large).tolist()

        def around(radii: list[float], turn=turn, x=x, y=y) -> list[tuple[float, float]]:
            angles = turn + 2 * math.pi * np.arange(len(radii)) / len(radii)
            pairs = zip(radii, angles, strict=True)
            return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in pairs]

        box = (x - radius, y - radius, x + radius, y + radius)
        if kind < 4:
            pen.polygon(around([radius] * (3 + kind)), fill=ink)
        elif kind < 6:
            pen.polygon(around([radius, 0.45 * radius] * (kind + 1)), fill=ink)
        elif kind == 6:
            pen.ellipse(box, fill=ink)
        elif kind == 7:
            pen.ellipse(box, outline=ink, width=int(0.3 * radius))
        else:
            for corner in around([radius] * 4)[: 2 * (kind - 7)]:
                pen.line([(x, y), corner], fill=ink, width=int(0.35 * radius))
        pictures[i] = np.asarray(picture.resize((side, side), Image.Resampling.BOX))
    return _scaled(pictures), torch.from_numpy(labels), kinds


def letters(
    count: int, draw: np.random.Generator, side: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return pictures `[N, 1, side, side]` of letters, as `shapes`; a class is a letter."""
    folder, large = Path(matplotlib.get_data_path()) / "fonts/ttf", 4 * side
    sizes = [large * share // 64 for share in (40, 48, 56)]
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", size) for name in FONTS for size in sizes]
    labels = draw.integers(len(LETTERS), size=count)
    pictures = np.empty((count, side, side, 1), np.uint8)
    for i, label in enumerate(labels):
        picture = Image.new("L", (large, large), 0)
        middle = tuple((large / 2 + draw.uniform(-3 * large / 32, 3 * large / 32, 2)).tolist())
        font = fonts[draw.integers(len(fonts))]
        ImageDraw.Draw(picture).text(middle, LETTERS[label], 255, font, anchor="mm")
        picture = picture.rotate(draw.uniform(-12, 12), Image.Resampling.BILINEAR)
        pictures[i, ..., 0] = np.asarray(picture.resize((side, side), Image.Resampling.BOX))
    return _scaled(pictures), torch.from_numpy(labels), len(LETTERS)


def emoji(
    count: int, selection: list[data.Emoji], assets: Path, side: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return pictures of emoji on plain backgrounds, as `shapes`; a class is an emoji."""
    painter = data.Painter(data.load_icons(selection, assets), device, side)
    chosen = torch.randint(len(selection), (count,), device=device)
    colours = torch.randint(len(data.COLOURS), (count,), device=device)
    parts = zip(chosen.split(CHUNK), colours.split(CHUNK), strict=True)
    return torch.cat([painter.one(*part) for part in parts]), chosen, len(selection)


DRAWN = {"shapes": shapes, "letters": letters}


def _scaled(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def network_of(model: Small, channels: int, classes: int) -> nn.Module:
    """Return a fresh network for pictures of some channels."""
    if model.layers == 0:
        widths = (model.width // 4, model.width // 2, model.width)
        return UNet2DModel(
            sample_size=model.side, in_channels=channels, out_channels=channels,
            block_out_channels=widths, down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3, layers_per_block=1, norm_num_groups=16,
            num_class_embeds=classes + 1,
        )  # fmt: skip
    return DiTTransformer2DModel(
        num_attention_heads=model.width // 24, attention_head_dim=24, in_channels=channels,
        out_channels=channels, num_layers=model.layers, sample_size=model.side, patch_size=4,
        num_embeds_ada_norm=classes,
    )  # fmt: skip


@dataclass
class Drawn(BaseOutput):
    """What `ClassPipeline` returns: tensors `[N, C, H, W]`, or pictures."""

    images: torch.Tensor | np.ndarray


class ClassPipeline(DiffusionPipeline):
    """Samples a network that is conditional on classes, with any scheduler of diffusers.

    Args:
        scheduler: of diffusers.
        transformer: the network, or a U-Net in its place.
    """

    def __init__(self, scheduler: Any, transformer: nn.Module) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)

    @property
    def classes(self) -> int:
        """How many classes there are; the number itself stands for none."""
        config = self.transformer.config
        return config.get("num_embeds_ada_norm") or config.num_class_embeds - 1

    @property
    def guidance_scale(self) -> float:
        """Of the present call."""
        return self._guidance_scale

    @torch.no_grad()
    def __call__(
        self, class_labels: list[int], guidance_scale: float = 1.0, num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None, return_dict: bool = True,
        output_type: str = "latent",
    ) -> Drawn | tuple[torch.Tensor]:  # fmt: skip
        """Return samples of classes, with classifier-free guidance unless its scale is 1.

        They are pictures `[N, H, W, C]` from 0 to 1 if the output type is "np".
        """
        self._guidance_scale, network = guidance_scale, self.transformer
        size, channels = network.config.sample_size, network.config.in_channels
        labels = torch.tensor(class_labels, device=self.device)
        generators = generator if isinstance(generator, list) else [generator] * len(labels)
        noise = [torch.randn(channels, size, size, generator=one) for one in generators]
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        sample = torch.stack(noise).to(self.device)
        sample = sample * getattr(self.scheduler, "init_noise_sigma", 1.0)
        doubled = torch.cat([labels, torch.full_like(labels, self.classes)])
        for timestep in self.progress_bar(self.scheduler.timesteps):
            given = sample
            if hasattr(self.scheduler, "scale_model_input"):
                given = self.scheduler.scale_model_input(sample, timestep)
            if guidance_scale == 1:
                output = self.predict(given, timestep, labels)
            else:
                both = self.predict(torch.cat([given, given]), timestep, doubled)
                with_class, without = both.chunk(2)
                output = without + guidance_scale * (with_class - without)
            sample = self.scheduler.step(output, timestep, sample, return_dict=False)[0]
        if output_type == "np":
            sample = (sample.clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy() + 1) / 2
        return Drawn(sample) if return_dict else (sample,)

    def predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return what the network predicts for samples at timesteps `[]` or `[N]`."""
        times = timestep.expand(len(sample))
        return self.transformer(sample, times, class_labels=labels, return_dict=False)[0]


def scheduler_of(model: Small) -> Any:
    """Return the scheduler of a model."""
    if model.predicts == "flow":
        return FlowMatchEulerDiscreteScheduler(**model.scheduler)
    return DDIMScheduler(prediction_type=model.predicts, clip_sample=False, **model.scheduler)


def loss_of(
    model: Small, pipe: ClassPipeline, pool: torch.Tensor, labels: torch.Tensor
) -> Callable[[nn.Module], torch.Tensor]:
    """Return the loss of a network on a batch that it draws."""
    device, batch = pool.device, model.batch

    def drawn(network: nn.Module, classes: torch.Tensor) -> torch.Tensor:
        if not isinstance(network, UNet2DModel):
            return classes  # diffusers' transformer drops classes by itself
        dropped = torch.rand(batch, device=device) < DROPPED
        return torch.where(dropped, pipe.classes, classes)

    def loss(network: nn.Module) -> torch.Tensor:
        chosen = torch.randint(len(pool), (batch,), device=device)
        clean, classes = pool[chosen], drawn(network, labels[chosen])
        noise = torch.randn_like(clean)
        if model.predicts == "flow":
            sigma = torch.sigmoid(torch.randn(batch, device=device))[:, None, None, None]
            times, noised = 1000 * sigma.flatten(), torch.lerp(clean, noise, sigma)
            target = noise - clean
        else:
            count = pipe.scheduler.config.num_train_timesteps
            times = torch.randint(count, (batch,), device=device)
            noised, target = pipe.scheduler.add_noise(clean, noise, times), noise
            if model.predicts == "v_prediction":
                target = pipe.scheduler.get_velocity(clean, noise, times)
        noised = noised.to(network.dtype)
        output = network(noised, times, class_labels=classes, return_dict=False)[0]
        return functional.mse_loss(output.float(), target)

    return loss


def pictures_of(model: Small, arguments: argparse.Namespace) -> tuple:
    """Return the pool of a model's pictures, their classes and how many classes there are."""
    if model.pictures in DRAWN:
        return DRAWN[model.pictures](model.pool, np.random.default_rng(0), model.side)
    selection, device = data.read_selection(arguments.data), torch.device(arguments.device)
    return emoji(model.pool, selection, arguments.assets, model.side, device)


def pipeline_of(model: Small, network: nn.Module) -> ClassPipeline:
    """Return the pipeline of a model's network."""
    pipe = ClassPipeline(scheduler_of(model), network.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    """Train one model and write its pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--data", type=Path, help="emoji.tsv, for models of emoji")
    parser.add_argument("--assets", type=Path, help="folder of their pictures, likewise")
    parser.add_argument("--iterations", type=int, help="by default the model's own number")
    parser.add_argument("--minutes", type=float, help="instead of iterations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, on_gpu = MODELS[arguments.name], arguments.device == "cuda"
    pool, labels, classes = (
        part.to(arguments.device) if isinstance(part, torch.Tensor) else part
        for part in pictures_of(model, arguments)
    )
    network = network_of(model, pool.shape[1], classes).to(arguments.device)
    pipe = pipeline_of(model, network)
    network.train()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    trainee = steps.Trainee(network, dtype, decay=model.decay)
    for module in trainee.worker.modules():
        if isinstance(module, Attention):  # fused ones cannot be relied on at these shapes
            module.set_processor(AttnProcessor())
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out.with_suffix(".pt")
    if checkpoint.exists():
        trainee.load(checkpoint)
    iterations = arguments.iterations or (None if arguments.minutes else model.iterations)
    budget = steps.Budget(arguments.minutes or math.inf, iterations, trainee.elapsed)
    steps.train(
        trainee, loss_of(model, pipe, pool, labels), budget, model.rate, arguments.name,
        checkpoint, graph=on_gpu, look=dict,
    )  # fmt: skip
    checkpoint.unlink()
    pipe = pipeline_of(model, trainee.average.eval())
    pipe.save_pretrained(arguments.out)
    report = {
        "device": vae.device_name(pipe.device), "iterations": trainee.iteration,
        "seconds": trainee.elapsed, "history": trainee.history,
    }  # fmt: skip
    steps.write_json(arguments.out / "training.json", report)
    labels = [i % classes for i in range(60)]
    noise = [torch.Generator().manual_seed(i) for i in range(60)]
    images = pipe(labels, guidance_scale=2.0, num_inference_steps=20, generator=noise).images
    images = images.expand(-1, 3, -1, -1)
    data.save_grid(images.clamp(-1, 1), arguments.out / "sheet.png", 12)


if __name__ == "__main__":
    main()
