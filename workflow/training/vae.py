"""The autoencoder of emoji-flux: 128 x 128 RGB to 16 x 16 latents with 16 channels, as in FLUX.1.

The loss is L1 + MSE, L1 between the pictures' differences of neighbouring pixels, against blur, and
a small KL term: the noise that the KL term keeps in the latents makes the decoder forgive the small
errors of a sampler.
"""

import copy
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

from training import data, steps

KL_WEIGHT = 2e-4  # for each latent element
EDGE_WEIGHT = 0.5


def build() -> AutoencoderKL:
    """A fresh autoencoder: f = 8, 16 latent channels, no quantisation layers (like FLUX.1)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=data.SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def moments(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of images ``(b, 3, h, w)``, float32."""
    dtype = next(model.parameters()).dtype
    mean, log_variance = model.encoder(images.to(dtype)).float().chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30, 20))


def edge_error(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """L1 between the differences of neighbouring pixels, down and across."""
    error = one - other
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def loss_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Training loss of a batch ``(b, 3, h, w)`` in [-1, 1]; a scalar."""
    mean, deviation = moments(model, images)
    latents = mean + deviation * torch.randn_like(mean)
    decoded = model.decoder(latents.to(next(model.parameters()).dtype)).float()
    divergence = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
    error = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
    return error + EDGE_WEIGHT * edge_error(decoded, images) + KL_WEIGHT * divergence.mean()


@torch.no_grad()
def psnr(model: AutoencoderKL, images: torch.Tensor, noise: float = 0.0) -> float:
    """Mean PSNR in dB of reconstructions, with noise of ``noise`` x latent std added if wanted."""
    values = []
    for batch in images.split(64):
        latents = moments(model, batch)[0]
        latents = latents + noise * latents.std() * torch.randn_like(latents)
        decoded = model.decoder(latents).clamp(-1, 1)
        error = ((decoded - batch) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.log10())
    return torch.cat(values).mean().item()


@torch.no_grad()
def set_latent_statistics(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Set shift and scale in the config so that (latent - shift) * scale has mean 0 and std 1."""
    latents = []
    for batch in images.split(64):
        mean, deviation = moments(model, batch)
        latents.append(mean + deviation * torch.randn_like(mean))
    everything = torch.cat(latents)
    model.register_to_config(
        shift_factor=round(everything.mean().item(), 5),
        scaling_factor=round(1 / everything.std().item(), 5),
    )


@torch.no_grad()
def save_sheet(model: AutoencoderKL, images: torch.Tensor, path: Path) -> None:
    """Write pictures (odd rows) and their reconstructions (even rows) as a PNG."""
    decoded = model.decoder(moments(model, images)[0]).clamp(-1, 1)
    rows = [torch.cat([images[i : i + 8], decoded[i : i + 8]]) for i in range(0, len(images), 8)]
    data.save_grid(torch.cat(rows), path, columns=8)


def save(model: AutoencoderKL, path: Path) -> None:
    """Save a diffusers model directory in float32, whole or not at all."""
    beside = path.with_name(path.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    steps.replace_directory(beside, path)


def for_computing(model: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    """A copy in ``dtype`` to encode many pictures with."""
    return copy.deepcopy(model).to(dtype).eval().requires_grad_(False)


def train(
    painter: data.Painter,
    scenes: data.Scenes,
    held_out: torch.Tensor,
    out: Path,
    budget_of: callable,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    graph: bool = False,
) -> AutoencoderKL:
    """Train, write ``out/vae``, ``out/vae.json`` and ``out/vae.png``; returns the averaged model.

    ``held_out`` are pictures ``(n, 3, h, w)``; ``budget_of(elapsed)`` gives the Budget.
    """
    device = painter.device
    torch.manual_seed(seed)
    trainee = steps.Trainee(build().to(device), dtype, decay=0.998)
    if device.type == "cuda":
        trainee.worker.to(memory_format=torch.channels_last)
    checkpoint = out / "vae.pt"
    if checkpoint.exists():
        trainee.load(checkpoint)
    ones = batch // 2

    def loss(worker: nn.Module) -> torch.Tensor:
        return loss_of(worker, data.paint(painter, scenes.draw(ones, batch - ones), ones))

    def look() -> dict:
        return {"psnr_db": psnr(trainee.average, held_out[:128])}

    torch.backends.cudnn.benchmark = True
    steps.train(
        trainee,
        loss,
        budget_of(trainee.elapsed),
        rate,
        "vae",
        checkpoint,
        seed=seed,
        graph=graph,
        look=look,
    )
    torch.backends.cudnn.benchmark = False
    model = trainee.average.eval()
    with torch.no_grad():
        fresh = [
            data.paint(painter, scenes.draw(ones, batch - ones), ones)
            for _ in range(-(-4 * len(held_out) // batch))
        ]
    set_latent_statistics(model, torch.cat(fresh))
    save(model, out / "vae")
    save_sheet(model, held_out[:: max(1, len(held_out) // 32)][:32], out / "vae.png")
    report = {
        "iterations": trainee.iteration,
        "batch": batch,
        "minutes": trainee.elapsed / 60,
        "peak_rate": rate,
        "device": device_name(device),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "held_out_psnr_db": psnr(model, held_out),
        "held_out_psnr_db_noise_0.1": psnr(model, held_out, noise=0.1),
        "scaling_factor": model.config.scaling_factor,
        "shift_factor": model.config.shift_factor,
        "jitter": data.JITTER,
        "history": trainee.history,
    }
    steps.write_json(out / "vae.json", report)
    steps.say(f"vae: held-out PSNR {report['held_out_psnr_db']:.2f} dB")
    return model


def device_name(device: torch.device) -> str:
    """The device in words, for the reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
