"""What the training programs share: a budget with its learning-rate schedule, atomic writes."""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from eigencache._files import replacing


class Budget:
    """How much of a training is done, in iterations or, where ``minutes`` is given, by the clock.

    The clock runs over all sessions of a resumed training: ``elapsed`` is stored in checkpoints.
    """

    def __init__(self, iterations: int, minutes: float | None = None, elapsed: float = 0.0):
        self.iterations, self.minutes = iterations, minutes
        self.started = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds spent training."""
        return time.monotonic() - self.started

    def progress(self, iteration: int) -> float:
        """Fraction done, in [0, 1]."""
        if self.minutes is not None:
            return min(1.0, self.elapsed / (60 * self.minutes))
        return min(1.0, iteration / self.iterations)


def learning_rate(peak: float, progress: float, warm_up: float = 0.02) -> float:
    """Linear warm-up over the first ``warm_up`` of the training, then a cosine to 1 % of peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return peak * (0.01 + 0.99 * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def orthogonalise(matrices: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Move the singular values of matrices ``(..., m, n)`` close to one.

    Newton-Schulz iterations with Muon's coefficients.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    matrices = matrices.mT if tall else matrices
    matrices = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = matrices @ matrices.mT
        mixed = torch.add(2.0315 * (gram @ gram), gram, alpha=-4.7750)
        matrices = torch.add(mixed @ matrices, matrices, alpha=3.4445)
    return matrices.mT if tall else matrices


class Muon(torch.optim.Optimizer):
    """Muon for convolutions as well: every weight is a matrix (outputs, everything else).

    ``torch.optim.Muon`` takes matrices only.  The updates are scaled to the size that AdamW's
    usually have, so that both can share a learning rate.  Weights of one shape move together.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 1e-4):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight by its orthogonalised momentum."""
        for group in self.param_groups:
            shapes = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                ahead = torch.stack([self.look_ahead(w, group["momentum"]) for w in weights])
                update = orthogonalise(ahead) * (0.2 * max(ahead.shape[1:]) ** 0.5)
                for weight, move in zip(weights, update, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"])
                    weight.sub_(move.reshape(weight.shape), alpha=group["lr"])

    def look_ahead(self, weight: torch.Tensor, momentum: float) -> torch.Tensor:
        """Nesterov momentum of a weight, as a matrix."""
        state = self.state[weight]
        if not state:
            state["velocity"] = torch.zeros_like(weight)
        velocity = state["velocity"].lerp_(weight.grad, 1 - momentum)
        return torch.lerp(weight.grad, velocity, momentum).flatten(1)


class MuonAndAdamW:
    """Muon for matrices and convolutions, AdamW for vectors and embeddings, behind one face."""

    def __init__(self, model: torch.nn.Module, lr: float):
        tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        excluded = {id(weight) for weight in tables}
        weights = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in weights if p.ndim > 1 and id(p) not in excluded]
        chosen = {id(p) for p in matrices}
        rest = [p for p in weights if id(p) not in chosen]
        self.parts = (
            Muon(matrices, lr),
            torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        )

    @property
    def param_groups(self) -> list[dict]:
        """The groups of both parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """One step of both parts."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """The state of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    with replacing(path) as part:
        torch.save(state, part)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint; only tensors and plain containers are accepted."""
    return torch.load(path, weights_only=True)


def write_json(path: Path, content: dict) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def json_of(tokenizer: Tokenizer) -> dict:
    """A tokenizer's whole state."""
    return json.loads(tokenizer.to_str())


def replace_directory(new: Path, path: Path) -> None:
    """Put the finished directory ``new`` in the place of ``path``."""
    if path.exists():
        shutil.rmtree(path)
    os.replace(new, path)


def add_training_arguments(parser: argparse.ArgumentParser, iterations: int, batch: int) -> None:
    """Add the options that every training program has."""
    parser.add_argument("--out", type=Path, required=True, help="directory for everything written")
    parser.add_argument("--iterations", type=int, default=iterations)
    parser.add_argument("--minutes", type=float, help="stop by the clock instead of iterations")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--resume", action="store_true", help="go on from a checkpoint in OUT")
