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


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Move the singular values of a matrix close to one (Newton-Schulz, Muon's coefficients)."""
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(steps):
        gram = matrix @ matrix.T
        mixed = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        matrix = torch.addmm(matrix, mixed, matrix, beta=3.4445)
    return matrix.T if tall else matrix


class Muon(torch.optim.Optimizer):
    """Muon for convolutions as well: every weight is a matrix (outputs, everything else).

    ``torch.optim.Muon`` takes matrices only.  Vectors are left to AdamW, with the same learning
    rate: the updates are scaled to the size that AdamW's usually have.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 1e-4):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight by its orthogonalised momentum."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = torch.lerp(weight.grad, velocity, group["momentum"]).flatten(1)
                update = orthogonalise(ahead) * (0.2 * max(ahead.shape) ** 0.5)
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.sub_(update.view_as(weight), alpha=group["lr"])


class MuonAndAdamW:
    """Muon for matrices and convolutions, AdamW for vectors, behind an optimizer's usual face."""

    def __init__(self, model: torch.nn.Module, lr: float):
        weights = [p for p in model.parameters() if p.requires_grad]
        self.parts = (
            Muon([p for p in weights if p.ndim > 1], lr),
            torch.optim.AdamW([p for p in weights if p.ndim == 1], lr, weight_decay=0.0),
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
    """Write a checkpoint beside ``path``, then rename, so that a killed run leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    torch.save(state, beside)
    os.replace(beside, path)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint; only tensors and plain containers are accepted."""
    return torch.load(path, weights_only=True)


def write_json(path: Path, content: dict) -> None:
    """Write JSON beside ``path``, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


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
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
