"""Full runs of a pipeline, for the closed loop: their latents, and the network that made them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from eigencache.calibration.sampler import Settings, call, image_seed, together
from eigencache.closed_loop import Runs
from eigencache.design import step_sizes
from eigencache.plan import PlanError


@torch.no_grad()
def full_runs(
    pipe: Any, texts: Sequence[dict[str, torch.Tensor]], settings: Settings,
    seed: int, indices: Sequence[int], batch: int,
) -> Runs:  # fmt: skip
    """Return full runs of `texts[i]` with the noise of `image_seed(seed, i)`, i in `indices`.

    A text is the embeddings of a prompt, from `eigencache.calibration.sampler.encode`.

    The network is called as the pipeline calls it, with other latents and timesteps; under
    classifier-free guidance twice, and what is followed is the guided velocity. A plan at the
    output tap forecasts both calls alike and is linear, so it forecasts that too.

    Raises:
        PlanError: the sampler does not take one Euler step by that velocity at each step.
    """
    parts, calls, sizes = [], [], []
    for first in range(0, len(indices), batch):
        chunk = indices[first : first + batch]
        text = together([texts[i] for i in chunk])
        latents, network = _one_run(pipe, text, settings, [image_seed(seed, i) for i in chunk])
        parts.append(latents)
        calls.append(network)
        sizes.append(len(chunk))

    @torch.no_grad()
    def velocity(latents: np.ndarray, step: int) -> np.ndarray:
        split = zip(calls, torch.from_numpy(latents).split(sizes), strict=True)
        return torch.cat([network(part, step) for network, part in split]).double().cpu().numpy()

    timesteps = pipe.scheduler.timesteps.double().cpu().numpy()
    rounding = torch.finfo(pipe.transformer.dtype).eps
    runs = Runs(torch.cat(parts, 1).numpy(), velocity, timesteps, rounding)
    _check_euler(runs)
    return runs


def _one_run(
    pipe: Any, text: dict[str, torch.Tensor], settings: Settings, seeds: Sequence[int]
) -> tuple[torch.Tensor, Callable[[torch.Tensor, int], torch.Tensor]]:
    """Return the latents of every step, and the velocity there as the pipeline computes it."""
    latents, calls = [], []

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not {"hidden_states", "timestep"} <= kwargs.keys():
            raise PlanError(
                f"{type(pipe).__name__} does not call its transformer with hidden_states and "
                "timestep by name: the closed loop cannot follow it"
            )
        latents.append(kwargs["hidden_states"].cpu())
        calls.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

    hook = pipe.transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        final = call(pipe, text, settings, seeds, output_type="latent")
    finally:
        hook.remove()
    steps, passes = len(pipe.scheduler.timesteps), 2 if settings.true_cfg_scale > 1 else 1
    if len(calls) != passes * steps:
        raise PlanError(
            f"the pipeline called its network {len(calls)} times in {steps} steps: the closed "
            f"loop needs {passes} a step at true_cfg_scale {settings.true_cfg_scale:g}"
        )

    def network(part: torch.Tensor, step: int) -> torch.Tensor:
        changed = {"hidden_states": part.to(final.device, final.dtype)}
        conditional, *unconditional = (
            pipe.transformer(**kwargs | changed)[0]
            for kwargs in calls[passes * step : passes * (step + 1)]
        )
        if not unconditional:
            return conditional
        return unconditional[0] + settings.true_cfg_scale * (conditional - unconditional[0])

    return torch.stack([*latents[::passes], final.cpu()]).double(), network


def _check_euler(runs: Runs) -> None:
    """Raise a PlanError unless each step is x_{s+1} = x_s + d_s f_s, but for rounding."""
    sizes, middle = step_sizes(runs.timesteps), len(runs) // 2
    for step in {0, middle, len(runs) - 1}:
        moved = sizes[step] * runs.velocity(runs.latents[step], step)
        really = runs.latents[step + 1] - runs.latents[step]
        rounded = runs.rounding * np.linalg.norm(runs.latents[step])
        if np.linalg.norm(moved - really) > 0.05 * np.linalg.norm(really) + rounded:
            raise PlanError(
                f"step {step} of the sampler is no Euler step of flow matching: the closed loop "
                "is for FlowMatchEulerDiscreteScheduler"
            )
