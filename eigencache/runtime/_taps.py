"""Taps: where in a diffusers transformer features are taken, and what of them is kept."""

import contextlib
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from eigencache._upstream import (
    TEXT_FIRST,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
    pytree,
    state_given,
)
from eigencache.tokens import Place


@dataclass(frozen=True)
class Ports:
    """Which arguments and results of a block are its states: the image's, and maybe the text's.

    States are a tuple of tensors, the image's first (diffusers' hidden states), and then, where
    there are any, the text's (its encoder hidden states).
    """

    metadata: TransformerBlockMetadata

    @classmethod
    def of(cls, block: nn.Module) -> "Ports":
        """Return the ports that diffusers has registered for a block's class.

        Raises:
            ValueError: it has registered none, or arguments that the block does not take.
        """
        try:
            ports = cls(TransformerBlockRegistry.get(type(block)))
        except ValueError as error:
            raise ValueError(
                f"diffusers does not say which results of {type(block).__name__} are its states "
                "(TransformerBlockRegistry): use tap output or modules"
            ) from error
        takes = list(inspect.signature(type(block).forward).parameters)
        missing = [name for name in ports.arguments if name not in takes]
        if missing:
            raise ValueError(
                f"diffusers says that the states of {type(block).__name__} are its arguments "
                f"{missing}, but it takes {takes[1:]}: use tap output or modules"
            )
        return ports

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that are states."""
        names = [self.metadata.hidden_states_argument_name]
        if self.metadata.return_encoder_hidden_states_index is not None:
            names += [self.metadata.encoder_hidden_states_argument_name]
        return names

    def entering(self, args: tuple, kwargs: dict) -> tuple[torch.Tensor, ...]:
        """Return the states with which the block is called."""
        found = [state_given(self.metadata, name, args, kwargs) for name in self.arguments]
        return tuple(state for state in found if state is not None)

    def leaving(self, output: Any) -> tuple[torch.Tensor, ...]:
        """Return the states in what the block returned."""
        if isinstance(output, torch.Tensor):
            return (output,)
        image = output[self.metadata.return_hidden_states_index]
        text = self.metadata.return_encoder_hidden_states_index
        return (image,) if text is None or output[text] is None else (image, output[text])

    def output(self, states: tuple[torch.Tensor, ...]) -> Any:
        """Return states as the block returns them; the inverse of `leaving`."""
        text = self.metadata.return_encoder_hidden_states_index
        if text is None:
            return states[0]
        output: list[torch.Tensor | None] = [None, None]
        output[self.metadata.return_hidden_states_index] = states[0]
        output[text] = states[1] if len(states) > 1 else None
        return tuple(output)


class Whole:
    """A stream whose feature is all that one module returns."""

    def __init__(self, module: nn.Module) -> None:
        self.modules = (module,)

    def entering(self, index: int, args: tuple, kwargs: dict) -> Any:
        return None

    def check(self, index: int, entered: Any, output: Any) -> None:
        """Any output can be stood in for."""

    def feature(self, entered: Any, output: Any) -> Any:
        return output

    def leaving(self, entered: Any, feature: Any) -> Any:
        return feature

    def output(self, index: int, left: Any) -> Any:
        return left


class Blocks:
    """A stream of blocks that run one after another, whose states are taken where they end.

    The feature is what all of them together add to the states; or, if not `residual`, the image's
    states as the last block returns them. Where it is forecast the blocks before the last return
    the states that enter them.
    """

    def __init__(self, blocks: list[nn.Module], residual: bool) -> None:
        self.modules, self.residual = tuple(blocks), residual
        self.ports = [Ports.of(block) for block in blocks]

    def entering(self, index: int, args: tuple, kwargs: dict) -> tuple[torch.Tensor, ...]:
        """Return the states with which the block at `index` is called."""
        return self.ports[index].entering(args, kwargs)

    def check(self, index: int, entered: tuple, output: Any) -> None:
        """Raise a ValueError if the block at `index` returns what could not be stood in for."""
        ports, kind = self.ports[index], type(self.modules[index]).__name__
        left = ports.leaving(output)
        if pytree.tree_structure(ports.output(left)) != pytree.tree_structure(output):
            raise ValueError(f"{kind} returns more than its states: use tap output or modules")
        # Without the batch: one text may serve all of its images, and leaves as many.
        before, after = [[list(state.shape[1:]) for state in states] for states in (entered, left)]
        last = index == len(self.modules) - 1
        if after != before[: len(after)] and not last:
            raise ValueError(
                f"{kind} is given states of shapes {before} and returns {after}: use tap output or "
                "modules"
            )

    def feature(self, entered: tuple, output: Any) -> tuple[torch.Tensor, ...]:
        """Return the feature, from the states that entered and what the last block returned."""
        left = self.ports[-1].leaving(output)
        if not self.residual:
            return left[:1]
        if any(a.shape[1:] != b.shape[1:] for a, b in zip(left, entered, strict=False)):
            raise ValueError(
                f"what {len(self.modules)} blocks up to a {type(self.modules[-1]).__name__} add "
                "cannot be taken, since their states leave in other shapes than they enter: use "
                "tap hidden, output or modules"
            )
        return tuple(after - before for after, before in zip(left, entered, strict=False))

    def leaving(self, entered: tuple, feature: tuple) -> tuple[torch.Tensor, ...]:
        """Return the states after the last block, from those that entered and the feature."""
        if not self.residual:
            return feature + entered[1:]
        return tuple(before + added for before, added in zip(entered, feature, strict=False))

    def output(self, index: int, left: tuple) -> Any:
        """Return the states after the last block as the block at `index` returns its own."""
        return self.ports[index].output(left)


Stream = Whole | Blocks


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
        streams: stream name to what is remembered and forecast under it.
        silent: modules whose output only feeds a stream, so that they need not run where it is
            forecast, each with the name of that stream.
        mlps: stream name to the MLP whose output the stream is; empty unless asked for.
    """

    streams: Mapping[str, Stream]
    silent: tuple[tuple[nn.Module, str], ...] = ()
    mlps: Mapping[str, Mlp] = field(default_factory=dict)


# Children of a block that prepare its input for each image, not for each token; by name or class.
_AROUND = re.compile("norm|modul|embed|_mod$", re.IGNORECASE)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# The children of a fused block that feed its projection.
FUSED = ("attn", "proj_mlp", "act_mlp")


def tap_modules(transformer: nn.Module, refreshed: bool = False) -> Tapped:
    """Every attention and MLP output, as TaylorSeer, HiCache and the EigenCache authors have it.

    These are the children of blocks that hold weights and are neither norms nor modulations. Blocks
    are the entries of every list of modules, wherever it is, that has such children.

    A block that fuses its attention and MLP into one projection (FLUX's single-stream blocks) is
    one stream, taken after the projection; what feeds the projection is silent. If tokens are to
    be `refreshed`, its attention is a stream too, since the projection of a token needs it.

    Raises:
        ValueError: the transformer has no list of blocks with attention or MLP children; or tokens
            are to be refreshed in blocks other than FLUX's.
    """
    streams: dict[str, Stream] = {}
    silent: list[tuple[nn.Module, str]] = []
    mlps: dict[str, Mlp] = {}
    for name, depth, block in _working_blocks(transformer):
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
        streams |= {f"{name}.{part}": Whole(children[part]) for part in parts}
    if not streams:
        raise ValueError(f"{type(transformer).__name__} has no blocks with attention or MLP parts")
    return Tapped(streams, tuple(silent), mlps)


def tapped(transformer: nn.Module, tap: str, refreshed: bool = False) -> Tapped:
    """Return what a tap speaks of in `transformer`.

    output   the whole stack's output: one stream; a skipped step runs nothing of the network
    hidden   the image's states after the last block: one stream; a skipped step runs no block
    blocks   what each block adds to the states: one stream per block
    delta    what the front half of the blocks adds, and what the back half adds (Delta-DiT)
    modules  see `tap_modules`

    Args:
        transformer: of diffusers.
        tap: one of `eigencache.plan.TAPS`.
        refreshed: whether a token-wise rule recomputes tokens; at tap "modules" only.

    Raises:
        KeyError: there is no such tap.
        ValueError: the transformer does not have what the tap needs.
    """
    if tap == "output":
        return Tapped({"output": Whole(transformer)})
    if tap == "modules":
        return tap_modules(transformer, refreshed)
    named = blocks_of(transformer)
    blocks = [block for _, block in named]
    half = len(blocks) // 2
    if tap == "delta" and not half:
        raise ValueError(f"{type(transformer).__name__} has one block, which has no two halves")
    streams: dict[str, Callable[[], dict[str, Stream]]] = {
        "hidden": lambda: {"hidden": Blocks(blocks, False)},
        "blocks": lambda: {name: Blocks([block], True) for name, block in named},
        "delta": lambda: {
            "front": Blocks(blocks[:half], True), "back": Blocks(blocks[half:], True)
        },
    }  # fmt: skip
    return Tapped(streams[tap]())


def blocks_of(transformer: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a transformer and their names, in the order in which they are defined.

    They are taken to run in that order, as they do in FLUX and its like.

    Raises:
        ValueError: it has none.
    """
    blocks = [(name, block) for name, _, block in _block_lists(transformer)]
    if not blocks:
        raise ValueError(f"{type(transformer).__name__} has no list of blocks")
    return blocks


def _block_lists(transformer: nn.Module) -> Iterator[tuple[str, float, nn.Module]]:
    """Yield each block of a transformer, with its name and its depth in its list, from 0 to 1."""
    for name, blocks in transformer.named_children():
        if isinstance(blocks, nn.ModuleList):
            for index, block in enumerate(blocks):
                yield f"{name}.{index}", index / max(len(blocks) - 1, 1), block


def _works(name: str, module: nn.Module) -> bool:
    """Return whether a child of a block is a part of it: holds weights, and is no norm or such."""
    around = _AROUND.search(name) or _AROUND.search(type(module).__name__)
    return not around and any(isinstance(inner, WEIGHTED) for inner in module.modules())


def _working_blocks(transformer: nn.Module) -> Iterator[tuple[str, float, nn.Module]]:
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


@contextlib.contextmanager
def watching(stream: Stream, keep: Callable) -> Iterator[None]:
    """Inside a `with` block, call `keep` with the stream's feature whenever its modules run.

    It sees the features that the runtime would remember and forecast.
    """
    entered: list[Any] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        entered[:] = [stream.entering(0, args, kwargs)]

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        keep(stream.feature(entered.pop(), output))

    with contextlib.ExitStack() as stack:
        first, last = stream.modules[0], stream.modules[-1]
        stack.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(last.register_forward_hook(leave).remove)
        yield


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

    Weights are left out, so that a fine-tuned model may use the plans of its base.
    """
    stated: Any = transformer.config
    config = {k: v for k, v in dict(stated).items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    return f"{type(transformer).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
