"""The full runs that solvers are fitted to, and the network that made them."""

import torch

from benchmarks.peers.fitting.meter import Meter
from benchmarks.peers.sampling import Arguments, Case, call

VARYING = ("hidden_states", "timestep", "return_dict")


class Teacher:
    """Full runs of FluxPipeline, recorded, and its network as a function of latents and sigma.

    Args:
        pipe: a FluxPipeline whose scheduler is Euler's.
        cases: of which all full runs are made, in one batch.
        arguments: of the call.

    Attributes:
        sigmas: float64 `[T + 1]`, those of the full run; the last is 0.
        latents: `[T + 1, N, tokens, channels]`, before each step and after the last.
        outputs: `[T, N, tokens, channels]`, the network's at each step.
        meter: what counts the calls of a fit.
    """

    meter: Meter

    def __init__(self, pipe, cases: list[Case], arguments: Arguments) -> None:
        self.network = pipe.transformer.requires_grad_(False)
        entered, left = [], []
        hooks = [
            self.network.register_forward_pre_hook(
                lambda module, args, kwargs: entered.append(dict(kwargs)), with_kwargs=True
            ),
            self.network.register_forward_hook(lambda module, args, made: left.append(made[0])),
        ]
        try:
            final = call(pipe, cases, arguments, None, output_type="latent")
        finally:
            for hook in hooks:
                hook.remove()
        self.sigmas = pipe.scheduler.sigmas.double().cpu().numpy()
        self.latents = torch.stack([*(inputs["hidden_states"] for inputs in entered), final])
        self.outputs = torch.stack(left)
        # What is the same at all steps. The ids of tokens and the like are shared by all images.
        inputs = {k: v for k, v in entered[0].items() if k not in VARYING}
        self.own = {
            k: v for k, v in inputs.items()
            if isinstance(v, torch.Tensor) and len(v) == len(cases) and not k.endswith("_ids")
        }  # fmt: skip
        self.shared = {k: v for k, v in inputs.items() if k not in self.own}

    def inputs(self, rows: torch.Tensor, latents: torch.Tensor, sigma) -> dict:
        """Return what the network is called with for the images `rows` at latents of theirs."""
        own = {name: tensor[rows] for name, tensor in self.own.items()}
        timestep = torch.as_tensor(sigma, dtype=latents.dtype).expand(len(rows))
        return {"hidden_states": latents, "timestep": timestep} | self.shared | own

    def velocity(self, rows: torch.Tensor, latents: torch.Tensor, sigma) -> torch.Tensor:
        """Return the network's output for the images `rows` at latents of theirs."""
        return self.network(**self.inputs(rows, latents, sigma), return_dict=False)[0]

    def decibels(self, rows: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
        """Return -10 log10 of the mean square error of each image's final latents."""
        return -10 * (final - self.latents[-1, rows]).square().mean((1, 2)).log10()
