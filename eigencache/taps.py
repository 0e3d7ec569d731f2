"""Taps: where in a diffusers transformer features are taken, and what of them is kept."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree  # diffusers registers its output classes here


@dataclass(frozen=True)
class Tapped:
    """The modules of one transformer that a tap speaks of.

    Attributes:
        streams: stream name to the module whose output is remembered and forecast.
        silent: modules whose output only feeds streams, so that they need not run at skipped
            steps at all.
    """

    streams: Mapping[str, nn.Module]
    silent: tuple[nn.Module, ...] = ()


# The children of a fused block that feed its projection.
FUSED = ("attn", "proj_mlp", "act_mlp")


def tap_output(transformer: nn.Module) -> Tapped:
    """The whole stack's output: one stream; a skipped step runs nothing of the network."""
    return Tapped({"output": transformer})


def tap_modules(transformer: nn.Module) -> Tapped:
    """Every attention and MLP output, as TaylorSeer, HiCache and the EigenCache authors have it.

    A block that fuses its attention and MLP into one projection (FLUX's single-stream blocks) is
    one stream, taken after the projection; what feeds the projection is silent.

    Raises:
        ValueError: the transformer has no list of blocks with attention or MLP children.
    """
    streams, silent = {}, []
    for name, blocks in transformer.named_children():
        if not isinstance(blocks, nn.ModuleList):
            continue
        for index, block in enumerate(blocks):
            children = dict(block.named_children())
            if {"attn", "proj_mlp", "proj_out"} <= children.keys():
                parts = ["proj_out"]
                silent += [children[part] for part in FUSED if part in children]
            else:
                parts = [part for part in children if part.startswith(("attn", "ff"))]
            streams |= {f"{name}.{index}.{part}": children[part] for part in parts}
    if not streams:
        raise ValueError(f"{type(transformer).__name__} has no blocks with attention or MLP parts")
    return Tapped(streams, tuple(silent))


def tapped(transformer: nn.Module, tap: str) -> Tapped:
    """Return the modules of `transformer` at a tap, one of `eigencache.plan.TAPS`.

    Raises:
        KeyError: there is no such tap.
    """
    return {"output": tap_output, "modules": tap_modules}[tap](transformer)


def tensors(output) -> list[torch.Tensor]:
    """Return the tensors of a module's output: a tensor, a tuple or a diffusers output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def map_tensors(function: Callable, output, *others):
    """Return `output` with every tensor replaced by `function` of it (and of those of `others`)."""
    return pytree.tree_map(function, output, *others)


def full_features(output) -> torch.Tensor:
    """Every number of a module's output, for one image: float32 `[D]`."""
    return torch.cat([tensor.float().flatten() for tensor in tensors(output)])


def token_mean(output) -> torch.Tensor:
    """The mean over tokens of `[1, tokens, channels]` outputs: float32 `[channels]` each."""
    return torch.cat([tensor.float().mean(dim=1).flatten() for tensor in tensors(output)])


# What a kernel is calibrated on.
FEATURES: Mapping[str, Callable] = {"full": full_features, "token-mean": token_mean}


def fingerprint(transformer: nn.Module) -> str:
    """Return what tells one architecture from another: the class name and a hash of its config.

    Weights are left out, so that a fine-tuned model may use the plans of its base.
    """
    config = {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    return f"{type(transformer).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
