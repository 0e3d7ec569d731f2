"""Small models whose kernels go into the package, for plans that need no calibration.

They are as different as minutes on one CPU core allow: drawn shapes, letters and emoji, in pixel
space; trained to predict the flow or the noise. All are transformers that are conditional on a
class, so that guidance means something.

    python -m training.small NAME --out FOLDER [--data EMOJI --assets ASSETS]
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
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
)
from diffusers.utils import BaseOutput
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional

from training import data, steps

SIDE = 16  # px of pictures in pixel space
POOL = 4096  # pictures are drawn once
LETTERS = "ABCDEGHKMPRSXZ24"
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralItalic", "cmtt10",
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    """One small model.

    Attributes:
        pictures: what it is trained on, "shapes", "letters" or "emoji".
        predicts: "flow" or "epsilon".
        iterations: of the training, with batches of `batch` pictures.
        scheduler: options of its scheduler.
    """

    pictures: str
    predicts: str
    iterations: int
    batch: int = 32
    scheduler: tuple[tuple[str, Any], ...] = ()


MODELS = {
    "shapes-flow": Small("shapes", "flow", 250, scheduler=(("shift", 1.5),)),
    "letters-flow": Small("letters", "flow", 900, 48, (("shift", 3.0),)),
    "emoji-epsilon": Small(
        "emoji", "epsilon", 300, scheduler=(
            ("beta_schedule", "scaled_linear"), ("beta_start", 0.00085), ("beta_end", 0.012),
        ),
    ),
    "shapes-epsilon": Small("shapes", "epsilon", 400),
}  # fmt: skip


def shapes(count: int, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return pictures `[N, 3, 16, 16]` of shapes in [-1, 1], their classes and how many there are.

    A class is a form: polygons of 3 to 6 corners, stars, discs, rings, bars and crosses.
    """
    kinds, large = 10, 4 * SIDE
    labels, pictures = draw.integers(kinds, size=count), np.empty((count, SIDE, SIDE, 3), np.uint8)
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
        pictures[i] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
    return _scaled(pictures), torch.from_numpy(labels), kinds


def letters(count: int, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return pictures `[N, 1, 16, 16]` of letters in [-1, 1], as `shapes`; a class is a letter."""
    folder, large = Path(matplotlib.get_data_path()) / "fonts/ttf", 4 * SIDE
    fonts = [
        ImageFont.truetype(folder / f"{name}.ttf", size) for name in FONTS for size in (40, 48, 56)
    ]
    labels = draw.integers(len(LETTERS), size=count)
    pictures = np.empty((count, SIDE, SIDE, 1), np.uint8)
    for i, label in enumerate(labels):
        picture = Image.new("L", (large, large), 0)
        middle = tuple((large / 2 + draw.uniform(-6, 6, 2)).tolist())
        font = fonts[draw.integers(len(fonts))]
        ImageDraw.Draw(picture).text(middle, LETTERS[label], 255, font, anchor="mm")
        picture = picture.rotate(draw.uniform(-12, 12), Image.Resampling.BILINEAR)
        pictures[i, ..., 0] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
    return _scaled(pictures), torch.from_numpy(labels), len(LETTERS)


def emoji(
    count: int, selection: list[data.Emoji], assets: Path, size: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return pictures `[N, 3, size, size]` of emoji, as `shapes`; a class is a group of emoji."""
    painter = data.Painter(data.load_icons(selection, assets), torch.device("cpu"), size)
    groups = sorted({item.group for item in selection})
    group = torch.tensor([groups.index(item.group) for item in selection])
    chosen = torch.randint(len(selection), (count,))
    colours = torch.randint(len(data.COLOURS), (count,))
    parts = zip(chosen.split(256), colours.split(256), strict=True)
    return torch.cat([painter.one(*part) for part in parts]), group[chosen], len(groups)


DRAWN = {"shapes": shapes, "letters": letters}


def _scaled(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def transformer(channels: int, classes: int) -> nn.Module:
    """Return a fresh diffusion transformer of 16 tokens, which drops classes by itself."""
    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=24, in_channels=channels, out_channels=channels,
        num_layers=4, sample_size=SIDE, patch_size=SIDE // 4, num_embeds_ada_norm=classes,
    )  # fmt: skip


@dataclass
class Drawn(BaseOutput):
    """What `ClassPipeline` returns: tensors `[N, C, H, W]`, or pictures."""

    images: torch.Tensor | np.ndarray


class ClassPipeline(DiffusionPipeline):
    """Samples a network that is conditional on classes, with any scheduler of diffusers.

    Args:
        scheduler: of diffusers.
        transformer: the network.
    """

    def __init__(self, scheduler: Any, transformer: DiTTransformer2DModel) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)

    @property
    def classes(self) -> int:
        """How many classes there are; the number itself stands for none."""
        return self.transformer.config.num_embeds_ada_norm

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
    options = dict(model.scheduler)
    if model.predicts == "flow":
        return FlowMatchEulerDiscreteScheduler(**options)
    return DDIMScheduler(prediction_type=model.predicts, clip_sample=False, **options)


def loss_of(
    pipe: ClassPipeline, predicts: str, pool: torch.Tensor, labels: torch.Tensor, batch: int
) -> Callable[[nn.Module], torch.Tensor]:
    """Return the loss of a network on a batch that it draws."""

    def loss(network: nn.Module) -> torch.Tensor:
        chosen = torch.randint(len(pool), (batch,))
        clean, classes = pool[chosen], labels[chosen]
        noise = torch.randn_like(clean)
        if predicts == "flow":
            sigma = torch.sigmoid(torch.randn(batch))[:, None, None, None]
            times, noised = 1000 * sigma.flatten(), torch.lerp(clean, noise, sigma)
            target = noise - clean
        else:
            times = torch.randint(pipe.scheduler.config.num_train_timesteps, (batch,))
            noised, target = pipe.scheduler.add_noise(clean, noise, times), noise
        output = network(noised, times, class_labels=classes, return_dict=False)[0]
        return functional.mse_loss(output, target)

    return loss


def pictures_of(model: Small, arguments: argparse.Namespace) -> tuple:
    """Return the pool of a model's pictures, their classes and how many classes there are."""
    draw = np.random.default_rng(0)
    if model.pictures in DRAWN:
        pool, labels, classes = DRAWN[model.pictures](POOL, draw)
    else:
        selection = data.read_selection(arguments.data)
        pool, labels, classes = emoji(POOL, selection, arguments.assets, SIDE)
    return pool, labels, classes


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
    parser.add_argument("--assets", type=Path, help="folder of <hexcode>.webp, likewise")
    parser.add_argument("--iterations", type=int, help="by default the model's own number")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = MODELS[arguments.name]
    pool, labels, classes = pictures_of(model, arguments)
    network = transformer(pool.shape[1], classes)
    pipe = pipeline_of(model, network)
    network.train()
    trainee = steps.Trainee(network, torch.float32, decay=0.995)
    budget = steps.Budget(math.inf, arguments.iterations or model.iterations)
    loss = loss_of(pipe, model.predicts, pool, labels, model.batch)
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out.with_suffix(".pt")
    steps.train(
        trainee, loss, budget, 2e-3, arguments.name, checkpoint, save_seconds=math.inf,
        look=lambda: {},
    )  # fmt: skip
    checkpoint.unlink()
    pipe = pipeline_of(model, trainee.average.eval())
    pipe.save_pretrained(arguments.out)
    report = {"history": trainee.history, "seconds": trainee.elapsed}
    steps.write_json(arguments.out / "training.json", report)
    labels = [i % classes for i in range(60)]
    noise = [torch.Generator().manual_seed(i) for i in range(60)]
    images = pipe(labels, guidance_scale=2.0, num_inference_steps=20, generator=noise).images
    images = images.expand(-1, 3, -1, -1)
    data.save_grid(images.clamp(-1, 1), arguments.out / "sheet.png", 12)


if __name__ == "__main__":
    main()
