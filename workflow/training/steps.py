"""What the trainings share: the budget, the optimizer, averaged weights, checkpoints, writing.

A training step contains no transfer from the GPU and no Python value that changes between steps, so
that on a GPU the whole step (painting, forward, backward, optimizer, average) is captured once as a
CUDA graph and replayed.
"""

import copy
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

STARTED_VARIABLE = "TRAINING_STARTED"
STARTED = float(os.environ.get(STARTED_VARIABLE, time.monotonic()))  # seconds; also after a restart


def say(message: str) -> None:
    """Print a line with the seconds since the program started."""
    print(f"[{time.monotonic() - STARTED:7.1f} s] {message}", flush=True)


class Budget:
    """How long a stage trains: for ``minutes`` by the clock, or for a number of iterations.

    The clock runs over all sessions of a resumed training: ``elapsed`` (seconds) is stored in
    checkpoints. Nothing runs past ``until``, in seconds since the program started.
    """

    def __init__(
        self,
        minutes: float,
        iterations: int | None = None,
        elapsed: float = 0.0,
        until: float = math.inf,
    ):
        left = max(0.0, until - (time.monotonic() - STARTED))
        self.seconds, self.iterations = min(60 * minutes, elapsed + left), iterations
        self.started = time.monotonic() - elapsed
        self.last = STARTED + until

    @property
    def elapsed(self) -> float:
        """Seconds spent training."""
        return time.monotonic() - self.started

    def progress(self, iteration: int) -> float:
        """Fraction done, in [0, 1]."""
        if time.monotonic() >= self.last:
            return 1.0
        if self.iterations is not None:
            return iteration / self.iterations if iteration < self.iterations else 1.0
        return min(1.0, self.elapsed / max(self.seconds, 1e-9))


def learning_rate(peak: float, progress: float, warm_up: float = 0.02) -> float:
    """Linear warm-up over the first ``warm_up`` of the training, then a cosine to 1 % of peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return peak * (0.01 + 0.99 * cosine)


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


class Optimizer:
    """Muon for matrices and convolutions, AdamW for vectors and embeddings.

    A convolution counts as the matrix (outputs, everything else). Muon's updates are scaled to the
    size that AdamW's usually have, so that both share one learning rate, the tensor ``rate``.
    Matrices of one shape move together. All state is tensors on the weights' device.
    """

    MOMENTUM, DECAY, BETAS, EPS = 0.95, 1e-4, (0.9, 0.99), 1e-8

    def __init__(self, model: nn.Module, weights: list[nn.Parameter], dtype: torch.dtype):
        """``weights`` of ``model`` are trained; ``dtype`` is that of Muon's iterations."""
        device = weights[0].device
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        shapes: dict[torch.Size, list[int]] = {}
        self.vectors = []
        for place, weight in enumerate(weights):
            if weight.ndim > 1 and id(weight) not in tables:
                shapes.setdefault(weight.shape, []).append(place)
            else:
                self.vectors.append(place)
        self.weights, self.groups, self.dtype = weights, list(shapes.values()), dtype
        self.rate = torch.zeros((), device=device)
        self.velocities = [
            torch.zeros((len(places), *shape), device=device).flatten(2)
            for shape, places in shapes.items()
        ]
        small = [weights[place] for place in self.vectors]
        self.means = [torch.zeros_like(weight) for weight in small]
        self.squares = [torch.zeros_like(weight) for weight in small]
        self.count = torch.zeros((), device=device)

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor]) -> None:
        """Move every weight; ``gradients`` are float32, one for each weight."""
        for places, velocity in zip(self.groups, self.velocities, strict=True):
            weights = [self.weights[place].detach() for place in places]
            slopes = torch.stack([gradients[place].flatten(1) for place in places])
            velocity.lerp_(slopes, 1 - self.MOMENTUM)
            ahead = torch.lerp(slopes, velocity, self.MOMENTUM)
            size = 0.2 * max(ahead.shape[1:]) ** 0.5
            moves = orthogonalise(ahead.to(self.dtype)).float() * (size * self.rate)
            torch._foreach_mul_(weights, 1 - self.DECAY * self.rate)
            torch._foreach_sub_(weights, list(moves.view(-1, *weights[0].shape).unbind()))
        if self.vectors:
            self.move_vectors([gradients[place] for place in self.vectors])

    def move_vectors(self, gradients: list[torch.Tensor]) -> None:
        """AdamW without decay."""
        weights = [self.weights[place].detach() for place in self.vectors]
        self.count += 1
        torch._foreach_lerp_(self.means, gradients, 1 - self.BETAS[0])
        torch._foreach_mul_(self.squares, self.BETAS[1])
        torch._foreach_addcmul_(self.squares, gradients, gradients, 1 - self.BETAS[1])
        below = torch._foreach_sqrt(self.squares)
        torch._foreach_div_(below, (1 - self.BETAS[1] ** self.count).sqrt())
        torch._foreach_add_(below, self.EPS)
        moves = torch._foreach_div(self.means, below)
        torch._foreach_mul_(moves, self.rate / (1 - self.BETAS[0] ** self.count))
        torch._foreach_sub_(weights, moves)

    def state_dict(self) -> dict:
        """Everything that changes."""
        keys = ("velocities", "means", "squares", "count")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state."""
        for key in ("velocities", "means", "squares"):
            for mine, saved in zip(getattr(self, key), state[key], strict=True):
                mine.copy_(saved)
        self.count.copy_(state["count"])


class Trainee:
    """A model in training: float32 weights, their running average, and the copy that computes.

    ``worker`` is the module to compute the loss with: the model itself, or a copy of it in
    bfloat16 in which only the modules named ``precise`` stay float32.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        decay: float,
        frozen: tuple[str, ...] = (),
        precise: tuple[str, ...] = (),
    ):
        self.model, self.decay = model, decay
        for name, weight in model.named_parameters():
            weight.requires_grad_(not name.startswith(frozen) if frozen else True)
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.worker = model
        if dtype != torch.float32:
            self.worker = copy.deepcopy(model).to(dtype)
            for name in precise:
                self.worker.get_submodule(name).float()
        names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        mine, averaged, working = (
            dict(module.named_parameters()) for module in (model, self.average, self.worker)
        )
        self.weights = [mine[name] for name in names]
        self.averages = [averaged[name] for name in names]
        self.working = [working[name] for name in names]
        self.optimizer = Optimizer(model, self.weights, dtype)
        self.iteration, self.elapsed, self.history = 0, 0.0, []
        device = self.weights[0].device
        self.total = torch.zeros((), device=device)
        self.pace = torch.ones((), device=device)  # how far the average moves in a step

    def step(self, loss_of: Callable[[nn.Module], torch.Tensor]) -> None:
        """One step: the loss of the worker, its gradients, the optimizer, the average."""
        loss = loss_of(self.worker)
        gradients = torch.autograd.grad(loss, self.working)
        with torch.no_grad():
            self.total += loss.detach().float()
            gradients = [gradient.float() for gradient in gradients]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
            self.optimizer.step(gradients)
            ahead = torch._foreach_sub(self.weights, self.averages)
            torch._foreach_mul_(ahead, self.pace)
            torch._foreach_add_(self.averages, ahead)
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the worker the model's weights."""
        if self.worker is not self.model:
            torch._foreach_copy_(self.working, self.weights)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps, and the pace of the average."""
        self.optimizer.rate.fill_(rate)
        self.pace.fill_(1 - min(self.decay, (1 + self.iteration) / (10 + self.iteration)))

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "average", "optimizer")}
        state |= {key: getattr(self, key) for key in ("iteration", "elapsed", "history")}
        with replacing(path) as part:
            torch.save(state, part)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; only tensors and plain containers are accepted."""
        state = torch.load(path, weights_only=True, map_location=self.total.device)
        for key in ("model", "average", "optimizer"):
            getattr(self, key).load_state_dict(state[key])
        for key in ("iteration", "elapsed", "history"):
            setattr(self, key, state[key])
        if self.worker is not self.model:
            working, mine = self.worker.state_dict(), self.model.state_dict()
            for name in working:
                working[name].copy_(mine[name])


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The same step as one CUDA graph, after three steps that fill caches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def train(
    trainee: Trainee,
    loss_of: Callable[[nn.Module], torch.Tensor],
    budget: Budget,
    peak: float,
    name: str,
    checkpoint: Path,
    seed: int = 0,
    graph: bool = False,
    every: int = 50,
    save_seconds: float = 600.0,
    warm_up: float = 0.02,
    look: Callable[[], dict] | None = None,
) -> None:
    """Train to the end of the budget, in place.

    ``loss_of(worker)`` draws its own batch. Every ``every`` steps the mean loss goes to the
    history, with what ``look()`` measured about ten times in the whole budget. A checkpoint is
    written every ``save_seconds`` and at the end. ``graph`` captures the step as a CUDA graph.
    A loss that is not finite raises FloatingPointError.
    """
    device = trainee.total.device
    torch.manual_seed(seed + trainee.iteration)

    def step() -> None:
        trainee.step(loss_of)

    advance, saved, looked, timed = step, time.monotonic(), 0.0, None
    trainee.total.zero_()
    since = trainee.iteration
    while (progress := budget.progress(trainee.iteration)) < 1:
        trainee.set_rate(learning_rate(peak, progress, warm_up))
        if graph and advance is step:
            advance = captured(step)
            trainee.iteration += 3
            say(f"{name}: the step is captured")
            timed = (time.monotonic(), trainee.iteration)
            continue
        advance()
        trainee.iteration += 1
        if timed is None:
            timed = (time.monotonic(), trainee.iteration)
        if device.type == "cuda" and trainee.iteration % 10 == 0:
            torch.cuda.current_stream().synchronize()  # the clock must not run ahead of the GPU
        if (trainee.iteration - since) >= every:
            loss = (trainee.total / (trainee.iteration - since)).item()
            trainee.total.zero_()
            since = trainee.iteration
            trainee.elapsed = budget.elapsed
            entry = {"iteration": trainee.iteration, "loss": loss, "seconds": trainee.elapsed}
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{name}: the loss is {loss} at iteration {trainee.iteration}"
                )
            if look and progress - looked >= 0.1:
                looked = progress
                entry |= look()
                pace = (time.monotonic() - timed[0]) / max(1, trainee.iteration - timed[1])
                say(f"{name} {progress:5.1%} {pace * 1000:.1f} ms a step {shown(entry)}")
            trainee.history.append(entry)
        if time.monotonic() - saved > save_seconds:
            trainee.elapsed = budget.elapsed
            trainee.save(checkpoint)
            saved = time.monotonic()
    trainee.elapsed = budget.elapsed
    trainee.save(checkpoint)
    say(f"{name}: {trainee.iteration} iterations in {trainee.elapsed:.0f} s")


def shown(entry: dict) -> str:
    """A line of numbers to print."""
    return ", ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in entry.items()
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def replace_directory(new: Path, path: Path) -> None:
    """Put the finished directory ``new`` in the place of ``path``."""
    if path.exists():
        shutil.rmtree(path)
    os.replace(new, path)


def start_again(flag: str) -> None:
    """Run this very command from its beginning with one more flag; finished stages are kept."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[STARTED_VARIABLE] = str(STARTED)
    arguments = [sys.executable, "-m", "training.run", *sys.argv[1:], flag]
    os.execv(sys.executable, arguments)
