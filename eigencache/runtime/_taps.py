"""Taps: where in a diffusers transformer features are taken, and what of them is kept."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ConfigMixin
from torch import nn

from eigencache._upstream import TEXT_FIRST, pytree, unwrapped
from eigencache.tokens import Place


@dataclass(frozen=True)
class Mlp:
    """An MLP of which a token-wise rule recomputes some tokens.

    Attributes:
        place: where it is.
        attention: the stream of the attention of its block.
    """

    place: Place
    attention: str


@dataclass(frozen=True)
class Tapped:
    """The modules of one transformer that a tap speaks of.

    Attributes:
        streams: stream name to the module whose output is remembered and forecast under it.
        silent: modules whose output only feeds a stream, so that they need not run where it is
            forecast, each with the name of that stream.
        mlps: stream name to the MLP whose output the stream is; empty unless asked for.
    """

    streams: Mapping[str, nn.Module]
    silent: tuple[tuple[nn.Module, str], ...] = ()
    mlps: Mapping[str, Mlp] = field(default_factory=dict)


# Children of a block that prepare its input for each image, not for each token; by name or class.
_AROUND = re.compile("norm|modul|embed|_mod$", re.IGNORECASE)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# The children of a fused block that feed its projection.
FUSED = ("attn", "proj_mlp", "act_mlp")


def tapped(transformer: nn.Module, tap: str, refreshed: bool = False) -> Tapped:
    """Return the streams of tap "output" or "modules"; of others, see `_blocks.Record`.

    output   the whole stack's output: one stream; a skipped step runs nothing of the network
    modules  every attention and MLP output, as TaylorSeer, HiCache and the EigenCache authors have
             it: one stream each

    Attentions and MLPs are the children of blocks that hold weights and are neither norms nor
    modulations. Blocks are the entries of every list of modules, wherever it is, that has such
    children. No pass is recorded for them, since it would not tell an attention or an MLP from what
    prepares its input.

    A block that fuses its attention and MLP into one projection (FLUX's single-stream blocks) is
    one stream, taken after the projection; what feeds the projection is silent. If tokens are to
    be `refreshed`, its attention is a stream too, since the projection of a token needs it.

    Raises:
        ValueError: the transformer has no list of blocks with attention or MLP children; or tokens
            are to be refreshed in blocks other than FLUX's.
    """
    if tap == "output":
        return Tapped({"output": transformer})
    streams: dict[str, nn.Module] = {}
    silent: list[tuple[nn.Module, str]] = []
    mlps: dict[str, Mlp] = {}
    for name, depth, block in working_blocks(transformer):
        children = dict(block.named_children())
        if refreshed:
            _check_refreshable(block)
        if {"attn", "proj_mlp", "proj_out"} <= children.keys():
            parts, stream = ["proj_out"], f"{name}.proj_out"
            feeding = [part for part in FUSED if part in children]
            if refreshed:
                parts, feeding = ["attn", "proj_out"], feeding[1:]
                mlps[stream] = Mlp(Place(False, True, depth), f"{name}.attn")
            silent += [(children[part], stream) for part in feeding]
        else:
            parts = [part for part, child in children.items() if _works(part, child)]
            if refreshed:
                mlps |= {
                    f"{name}.{part}": Mlp(Place(part != "ff", False, depth), f"{name}.attn")
                    for part in parts
                    if part != "attn"
                }
        streams |= {f"{name}.{part}": children[part] for part in parts}
    if not streams:
        raise ValueError(f"{type(transformer).__name__} has no blocks with attention or MLP parts")
    return Tapped(streams, tuple(silent), mlps)


def _works(name: str, module: nn.Module) -> bool:
    """Return whether a child of a block is a part of it: holds weights, and is no norm or such."""
    around = _AROUND.search(name) or _AROUND.search(type(module).__name__)
    return not around and any(isinstance(inner, WEIGHTED) for inner in module.modules())


def working_blocks(transformer: nn.Module) -> Iterator[tuple[str, float, nn.Module]]:
    """Yield each block that has parts, with its name and its depth in its list, from 0 to 1.

    A block that only holds another block (HiDream's) is passed over in favour of that one.
    """
    inside: set[nn.Module] = set()
    for path, blocks in transformer.named_modules():
        if not isinstance(blocks, nn.ModuleList) or blocks in inside:
            continue
        for index, outer in enumerate(blocks):
            name, block = f"{path}.{index}", outer
            while len(children := list(block.named_children())) == 1:
                child, inner = children[0]
                if "Block" not in type(inner).__name__:
                    break
                name, block = f"{name}.{child}", inner
            parts = [child for name, child in children if _works(name, child)]
            if any(list(part.children()) and not hasattr(part, "base_layer") for part in parts):
                inside.update(outer.modules())
                yield name, index / max(len(blocks) - 1, 1), block


def _check_refreshable(block: nn.Module) -> None:
    """Raise a ValueError unless the block's attention is over the text and then the image."""
    if not isinstance(block, TEXT_FIRST):
        raise ValueError(
            f"tokens of {type(block).__name__} cannot be recomputed: the order of its text and "
            f"image is not known, only that of {[kind.__name__ for kind in TEXT_FIRST]}"
        )


def tensors(output: Any) -> list[torch.Tensor]:
    """Return the tensors of a module's output: a tensor, a tuple or a diffusers output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def map_tensors(function: Callable, output: Any, *others: Any) -> Any:
    """Return `output` with every tensor replaced by `function` of it (and of those of `others`).

    What is no tensor, such as None or the cache of a language model, is left as it is.
    """
    if isinstance(output, torch.Tensor):  # by far the most frequent
        return function(output, *others)

    def mapped(leaf: Any, *rest: Any) -> Any:
        return function(leaf, *rest) if isinstance(leaf, torch.Tensor) else leaf

    return pytree.tree_map(mapped, output, *others)


def full_features(output: Any) -> torch.Tensor:
    """Every number of a module's output, for one image: float32 `[D]`."""
    return torch.cat([tensor.float().flatten() for tensor in tensors(output)])


def token_mean(output: Any) -> torch.Tensor:
    """The mean over tokens of `[1, tokens, channels]` outputs: float32 `[channels]` each."""
    return torch.cat([tensor.float().mean(dim=1).flatten() for tensor in tensors(output)])


def every_eighth(output: Any) -> torch.Tensor:
    """Every eighth number of a module's output, for one image: float32 `[D / 8]`."""
    return full_features(output)[::8]


# How diffusers' pipelines name what denoises.
DENOISERS = ("transformer", "unet", "prior", "decoder", "controlnet")
# What a kernel is calibrated on.
FEATURES: Mapping[str, Callable] = {
    "full": full_features,
    "stride-8": every_eighth,
    "token-mean": token_mean,
}


def network_of(pipe: Any) -> nn.Module:
    """Return the network that denoises in a pipeline; of several, the one that is named first.

    Raises:
        ValueError: the pipeline has none loaded.
    """
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name.startswith(DENOISERS):
            return part
    raise ValueError(
        f"{type(pipe).__name__} has no network loaded whose name begins with {DENOISERS}"
    )


def fingerprint(transformer: nn.Module) -> str:
    """Return what tells one architecture from another: the class name and a hash of its config.

    Weights are left out, so that a fine-tuned model may use the plans of its base; and so are their
    quantisation, adapters of PEFT and torch.compile.
    """
    network: Any = unwrapped(transformer)
    config = {k: v for k, v in dict(network.config).items() if not k.startswith("_")}
    if isinstance(network, ConfigMixin):  # what it is made of, and nothing that a file adds
        made_of = inspect.signature(type(network).__init__).parameters
        config = {k: v for k, v in config.items() if k in made_of}
    text = json.dumps(config, sort_keys=True, default=str)
    return f"{type(network).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
