"""Gradient descent through the sampler, as the solvers trained by gradients need it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.peers.fitting.teacher import Teacher


class Model(Protocol):
    """What is trained.

    Attributes:
        parameters: tensors with gradients.
        network_calls: of one image.
    """

    parameters: list[torch.Tensor]
    network_calls: int

    def sample(self, teacher: Teacher, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return the latents of the images `rows` after each step."""

    def loss(self, teacher: Teacher, rows: torch.Tensor, latents: list[torch.Tensor]):
        """Return what is minimised."""


class Lion(torch.optim.Optimizer):
    """The optimizer of Chen et al., arXiv 2302.06675, without weight decay."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        """Move every parameter by the rate, in the direction of an average of gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p -= group["lr"] * (0.9 * mean + 0.1 * p.grad).sign()
                mean.mul_(0.99).add_(p.grad, alpha=0.01)


@dataclass
class Descent:
    """How a model is trained.

    If there are several rates, each is tried for `trial` iterations, and the best goes on. The rate
    is divided by 3 whenever the held-out latents have gained less than `least` dB in `patience`
    iterations; the third time is the end. What is kept is what had the best held-out latents.

    Attributes:
        fit, judge: the images that are fitted and those that are held out.
        optimizer: `optimizer(parameters, lr=rate)`.
        rates: to be tried.
        batch: how many images an iteration draws.
        trial, every, patience, least: see above; held-out latents are judged `every` so often.
        limit: seconds of CPU time at most, without the trials.
        log: where progress is appended, if anywhere.
    """

    fit: torch.Tensor
    judge: torch.Tensor
    optimizer: Callable = torch.optim.Adam
    rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    batch: int = 4
    trial: int = 40
    every: int = 20
    patience: int = 80
    least: float = 0.1
    limit: float = 400.0
    log: Path | None = None
    trace: list = field(default_factory=list)
    told: dict = field(default_factory=dict)

    def train(self, model: Model, teacher: Teacher) -> dict:
        """Train the model in place, and return how it went."""
        start, found = [p.detach().clone() for p in model.parameters], []
        for rate in self.rates if len(self.rates) > 1 else ():
            self._set(model, start)
            found.append((self._run(model, teacher, rate, trial=True), rate))
        self._set(model, start)
        rate = max(found)[1] if found else self.rates[0]
        begun = self._judged(model, teacher)
        reached = self._run(model, teacher, rate)
        return {
            "rate": rate,
            "begun_at_db": begun,
            "held_out_db": reached,
            **self.told,
            "trace": self.trace,
        }

    @staticmethod
    @torch.no_grad()
    def _set(model: Model, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(model.parameters, values, strict=True):
            parameter.copy_(value)

    def _run(self, model: Model, teacher: Teacher, rate: float, trial: bool = False) -> float:
        """Train from where the model is, leave it at its best, return the held-out decibels."""
        draw = torch.Generator().manual_seed(0)
        optimizer = self.optimizer(model.parameters, lr=rate)
        best, kept = self._judged(model, teacher), [p.detach().clone() for p in model.parameters]
        mark, marked, falls, begun = best, 0, 0, time.process_time()
        iteration, stopped = 0, "the gain ended"
        while True:
            rows = self.fit[torch.randperm(len(self.fit), generator=draw)[: self.batch]]
            optimizer.zero_grad()
            latents = model.sample(teacher, rows)
            model.loss(teacher, rows, latents).backward()
            teacher.meter.backward_calls += len(rows) * model.network_calls
            optimizer.step()
            iteration += 1
            if iteration % self.every:
                continue
            now = self._judged(model, teacher)
            if now > best:
                best, kept = now, [p.detach().clone() for p in model.parameters]
            if best > mark + self.least:
                mark, marked = best, iteration
            if not trial:
                meter = teacher.meter
                self.trace.append([meter.calls + meter.backward_calls, round(now, 3)])
            self._tell(
                f"rate {optimizer.param_groups[0]['lr']:.0e} iteration {iteration}: {now:.2f} dB, "
                f"best {best:.2f}, {time.process_time() - begun:.0f} s"
            )
            if trial and iteration >= self.trial:
                break
            if iteration - marked >= self.patience:
                mark, marked, falls = best, iteration, falls + 1
                self._set(model, kept)
                for group in optimizer.param_groups:
                    group["lr"] /= 3
            if falls == 3:
                break
            if time.process_time() - begun > self.limit:
                stopped = "the time was up"
                break
        self._set(model, kept)
        self.told = {"iterations": iteration, "stopped": stopped}
        return best

    @torch.no_grad()
    def _judged(self, model: Model, teacher: Teacher) -> float:
        final = model.sample(teacher, self.judge)[-1]
        value = float(teacher.decibels(self.judge, final).mean())
        return value if value == value else float("-inf")

    def _tell(self, line: str) -> None:
        if self.log:
            with self.log.open("a") as file:
                print(line, file=file)
