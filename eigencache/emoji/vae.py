"""Train the autoencoder of emoji-flux: 64 x 64 RGB to 8 x 8 latents with 16 channels, as in FLUX.1.

The loss is L1 + MSE with a small KL term: the noise that the KL term keeps in the latents makes
the decoder forgive the small errors of a sampler.
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from tqdm import tqdm

from eigencache.emoji import data, training


def build() -> AutoencoderKL:
    """A fresh autoencoder: f = 8, 16 latent channels, no quantisation layers (like FLUX.1)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=1,
        sample_size=data.SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def loss_of(model: AutoencoderKL, images: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """Training loss of a batch ``(b, 3, 64, 64)`` in [-1, 1]; a scalar."""
    posterior = model.encode(images).latent_dist
    decoded = model.decode(posterior.sample()).sample
    error = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
    return error + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()


@torch.no_grad()
def psnr(model: AutoencoderKL, images: torch.Tensor, noise: float = 0.0) -> float:
    """Mean PSNR in dB of reconstructions, with noise of ``noise`` x latent std added if wanted."""
    values = []
    for batch in images.split(64):
        latents = model.encode(batch).latent_dist.mean
        latents = latents + noise * latents.std() * torch.randn_like(latents)
        decoded = model.decode(latents).sample.clamp(-1, 1)
        error = ((decoded - batch) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.log10())
    return torch.cat(values).mean().item()


@torch.no_grad()
def set_latent_statistics(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Set shift and scale in the config so that (latent - shift) * scale has mean 0 and std 1."""
    latents = torch.cat([model.encode(b).latent_dist.sample() for b in images.split(64)])
    model.register_to_config(
        shift_factor=round(latents.mean().item(), 5),
        scaling_factor=round(1 / latents.std().item(), 5),
    )


@torch.no_grad()
def save_sheet(model: AutoencoderKL, images: torch.Tensor, path: Path) -> None:
    """Write pictures (odd rows) and their reconstructions (even rows) as a PNG."""
    decoded = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    rows = [torch.cat([images[i : i + 16], decoded[i : i + 16]]) for i in range(0, len(images), 16)]
    data.save_grid(torch.cat(rows), path, columns=16)


def train(arguments: argparse.Namespace, images: torch.Tensor, held_out: torch.Tensor) -> dict:
    """Train on uint8 pictures ``(n, 64, 64, 3)``, save the model, return the report."""
    model = build()
    optimizer = training.MuonAndAdamW(model, arguments.rate)
    iteration, elapsed, checkpoint = 0, 0.0, arguments.out / "checkpoint.pt"
    if arguments.resume and checkpoint.exists():
        state = training.load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        iteration, elapsed = state["iteration"], state["elapsed"]
    generator = torch.Generator().manual_seed(arguments.seed + iteration)
    budget = training.Budget(arguments.iterations, arguments.minutes, elapsed)
    history, recent = [], []
    bar = tqdm(initial=iteration, desc="vae", mininterval=5)
    while (progress := budget.progress(iteration)) < 1:
        training.set_learning_rate(optimizer, training.learning_rate(arguments.rate, progress))
        rows = torch.randint(len(images), (arguments.batch,), generator=generator)
        loss = loss_of(model, data.to_model_range(images[rows]), arguments.kl_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        iteration += 1
        recent.append(loss.item())
        bar.update()
        if iteration % 200 == 0:
            history.append({"iteration": iteration, "loss": sum(recent) / len(recent)})
            history[-1]["psnr_db"] = psnr(model, held_out[:128])
            recent.clear()
            bar.write(str(history[-1]))
            save_sheet(model, held_out[:64], arguments.out / "sheet.png")
            training.save_checkpoint(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "iteration": iteration,
                    "elapsed": budget.elapsed,
                },
            )
    set_latent_statistics(model, data.to_model_range(images[:4096]))
    save(model.eval(), arguments.out / "vae")
    save_sheet(model, held_out[:64], arguments.out / "sheet.png")
    return {
        "iterations": iteration,
        "batch": arguments.batch,
        "minutes": budget.elapsed / 60,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": sum(recent) / len(recent) if recent else history[-1]["loss"],
        "held_out_psnr_db": psnr(model, held_out),
        "held_out_psnr_db_noise_0.1": psnr(model, held_out, noise=0.1),
        "scaling_factor": model.config.scaling_factor,
        "shift_factor": model.config.shift_factor,
        "history": history,
    }


def save(model: AutoencoderKL, path: Path) -> None:
    """Save a diffusers model directory, whole or not at all."""
    beside = path.with_name(path.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    training.replace_directory(beside, path)


def main() -> None:
    """Train the autoencoder on a pool of renderings; write ``vae/`` and ``report.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data.add_data_arguments(parser)
    training.add_training_arguments(parser, iterations=4000, batch=8)
    parser.add_argument("--pool", type=int, default=12000, help="pictures to render")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--kl-weight", type=float, default=5e-4, help="per latent element")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    selection = data.read_selection(arguments.data)
    icons = data.load_icons(selection, arguments.assets)
    images, _ = data.render_pool(
        icons, data.pairs(selection, held_out=False), arguments.pool, arguments.seed
    )
    held_out, _ = data.render_pool(
        icons, data.pairs(selection, held_out=True), 512, arguments.seed + 1
    )
    report = train(
        arguments, torch.from_numpy(images), data.to_model_range(torch.from_numpy(held_out))
    )
    training.write_json(arguments.out / "report.json", report)


if __name__ == "__main__":
    main()
