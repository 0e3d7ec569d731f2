"""Distil classifier-free guidance into the guidance embedding, as FLUX.1-dev has it.

The teacher is the flow model: what it predicts with the caption, moved away from what it predicts
with the empty caption. Two remedies keep backgrounds and colours right, which plain guidance washes
out: there is no guidance at the noisiest and at the cleanest times, and the guided estimate of the
picture is brought back, most of the way, to the spread of the unguided one.
"""

import copy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training import data, flow, steps, vae

SCALES = (1.0, 6.0)
PLAIN_SHARE = 0.125  # of a batch is at guidance 1, where student and teacher are to be equal
INTERVAL = (0.12, 0.92)  # times outside get no guidance,
RAMP = 0.10  # and it grows to its full scale over this much inside
RESCALE = 0.7


def strength(times: torch.Tensor) -> torch.Tensor:
    """How much of the guidance applies at these times, in [0, 1]."""
    low, high = INTERVAL
    return ((times - low) / RAMP).clamp(0, 1) * ((high - times) / RAMP).clamp(0, 1)


def guided(
    with_caption: torch.Tensor,
    without: torch.Tensor,
    mixed: torch.Tensor,
    times: torch.Tensor,
    scales: torch.Tensor,
) -> torch.Tensor:
    """The guided velocity from two predictions.

    Velocities and ``mixed``, the noisy latents, are ``(b, tokens, 64)``; times and scales ``(b,)``.
    At scale 1 it is ``with_caption``.
    """
    extra = ((scales - 1) * strength(times))[:, None, None]
    moved = with_caption + extra * (with_caption - without)
    time = times[:, None, None]
    estimate, plain = mixed - time * moved, mixed - time * with_caption
    spread = plain.std(dim=(1, 2), keepdim=True) / estimate.std(dim=(1, 2), keepdim=True)
    estimate = estimate * (1 + RESCALE * (spread - 1))
    # Where nothing was added the estimate is the plain one; dividing by a small time is avoided.
    return torch.where(extra > 0, (mixed - estimate) / time.clamp(min=1e-3), with_caption)


def train(
    teacher: flow.FlowModel,
    pool: flow.Pool,
    held_out: flow.Pool,
    out: Path,
    budget_of: callable,
    size: int = data.SIZE,
    batch: int = 512,
    rate: float = 5e-4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    graph: bool = False,
    compiles: bool = False,
) -> tuple[flow.FlowModel, dict]:
    """Train a student that starts as the teacher; returns its average and the report."""
    device = pool.mean.device
    torch.manual_seed(seed)
    trainee = steps.Trainee(
        copy.deepcopy(teacher),
        dtype,
        decay=0.998,
        frozen=("text_encoder", "text_encoder_2"),
        precise=flow.PRECISE,
    )
    checkpoint = out / "distil.pt"
    if checkpoint.exists():
        trainee.load(checkpoint)
    master = copy.deepcopy(teacher).to(dtype).requires_grad_(False)
    for name in flow.PRECISE:
        master.get_submodule(name).float()
    rotary = teacher.transformer.pos_embed(flow.positions(size, device))
    plain = int(PLAIN_SHARE * batch)

    def compare(
        student: flow.FlowModel,
        teaching: flow.FlowModel,
        source: flow.Pool,
        count: int,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        """Mean square error of the student's velocity against the teacher's guided one."""
        with torch.no_grad():
            latents, ids, ids_2 = source.draw(count)
            noise, times = torch.randn_like(latents), flow.draw_times(count, device)
            mixed = torch.lerp(latents, noise, times[:, None, None])
            known = teaching.encode(ids, ids_2)
            nothing = [
                part.expand(count, *part.shape[1:]).contiguous()
                for part in teaching.encode(*source.empty)
            ]
            ones = torch.ones_like(times)
            both = [
                flow.velocity(teaching.transformer, mixed, times, ones, *condition, rotary)
                for condition in (known, nothing)
            ]
            target = guided(*both, mixed, times, scales)
        predicted = flow.velocity(student.transformer, mixed, times, scales, *known, rotary)
        return functional.mse_loss(predicted, target)

    def loss(worker: nn.Module) -> torch.Tensor:
        low, high = SCALES
        scales = low + (high - low) * torch.rand(batch, device=device)
        scales[:plain] = 1.0
        return compare(worker, master, pool, batch, scales)

    if compiles:
        flow.compile_blocks(trainee.worker)
        flow.compile_blocks(master)
        torch.autograd.grad(loss(trainee.worker), trainee.working)
        steps.say("distil: blocks are compiled")

    @torch.no_grad()
    def look() -> dict:
        count, errors = min(256, len(held_out.mean)), {}
        for scale in (1.0, 3.5, 6.0):
            torch.manual_seed(4321 + int(scale))
            scales = torch.full((count,), scale, device=device)
            error = compare(trainee.average, teacher, held_out, count, scales)
            errors[f"held_out_error_at_{scale:g}"] = error.item()
        torch.manual_seed(seed + trainee.iteration)
        return errors

    steps.train(
        trainee,
        loss,
        budget_of(trainee.elapsed),  # what was compiled above is not training
        rate,
        "distil",
        checkpoint,
        seed=seed,
        graph=graph,
        warm_up=0.05,
        look=look,
    )
    report = {
        "iterations": trainee.iteration,
        "batch": batch,
        "minutes": trainee.elapsed / 60,
        "peak_rate": rate,
        "device": vae.device_name(device),
        "scales": SCALES,
        "interval": INTERVAL,
        "rescale": RESCALE,
        **look(),
        "history": trainee.history,
    }
    steps.write_json(out / "distil.json", report)
    return trainee.average.eval(), report
