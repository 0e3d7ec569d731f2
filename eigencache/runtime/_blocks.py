"""Blocks: in which order they run and what their states are, as one recorded pass says it.

What is recorded are the entries of the network's own lists of modules. An entry is a block if it
returns tensors of the shapes of its arguments. Such an argument and what becomes of it is a state;
which of several it is, is told by where the tensor enters the block that runs next.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from eigencache._upstream import WeakTensorKeyDictionary, pytree
from eigencache.runtime._driver import signature_of
from eigencache.runtime._taps import tapped, tensors

BLOCK_TAPS = ("hidden", "blocks", "delta")


@dataclass(frozen=True)
class Ports:
    """Which arguments and results of a block are its states: the image's, and maybe the text's.

    States are a tuple of tensors in the order of the block's parameters, the image's first.

    Attributes:
        kind: the block's class.
        names: of the arguments.
        places: of the results, among the leaves of what the block returns.
        form: of what the block returns, as pytree's.
    """

    kind: type[nn.Module]
    names: tuple[str, ...]
    places: tuple[int, ...]
    form: Any

    def entering(self, args: tuple, kwargs: dict) -> tuple[torch.Tensor, ...]:
        """Return the states with which the block is called."""
        given = arguments_of(self.kind, args, kwargs)
        return tuple(given[name] for name in self.names)

    def leaving(self, output: Any) -> tuple[torch.Tensor, ...]:
        """Return the states in what the block returned."""
        leaves = pytree.tree_leaves(output)
        return tuple(leaves[place] for place in self.places)

    def output(self, states: tuple[torch.Tensor, ...]) -> Any:
        """Return states as the block returns them; the inverse of `leaving`."""
        leaves = dict(zip(self.places, states, strict=False))
        return pytree.tree_unflatten(map(leaves.get, range(self.form.num_leaves)), self.form)


class Blocks:
    """A stream of blocks that run one after another, whose states are taken where they end.

    The feature is what all of them together add to the states; or, if not `residual`, the image's
    states as the last block returns them. Where it is forecast the blocks before the last return
    the states that enter them.
    """

    def __init__(self, ports: list[Ports], residual: bool) -> None:
        self.ports, self.residual = ports, residual

    def __len__(self) -> int:
        return len(self.ports)

    def entering(self, index: int, args: tuple, kwargs: dict) -> tuple[torch.Tensor, ...]:
        """Return the states with which the block at `index` is called."""
        return self.ports[index].entering(args, kwargs)

    def feature(self, entered: tuple, output: Any) -> tuple[torch.Tensor, ...]:
        """Return the feature, from the states that entered and what the last block returned."""
        left = self.ports[-1].leaving(output)
        if not self.residual:
            return left[:1]
        # Without the batch: one text may serve all of its images, and leaves as many.
        if any(a.shape[1:] != b.shape[1:] for a, b in zip(left, entered, strict=False)):
            raise ValueError(
                f"what {len(self)} blocks up to a {self.ports[-1].kind.__name__} add cannot be "
                "taken, since their states leave in other shapes than they enter: use tap blocks, "
                "hidden, output or modules"
            )
        return tuple(after - before for after, before in zip(left, entered, strict=False))

    def leaving(self, first: tuple, entered: tuple, feature: tuple) -> tuple[torch.Tensor, ...]:
        """Return the states after the last block.

        Args:
            first: the states that entered the first block.
            entered: those that enter the last.
            feature: the stream's.
        """
        if not self.residual:
            return feature + entered[1:]
        return tuple(before + added for before, added in zip(first, feature, strict=False))

    def output(self, index: int, left: tuple) -> Any:
        """Return the states after the last block as the block at `index` returns its own."""
        return self.ports[index].output(left)


@dataclass(eq=False)
class Ran:
    """A call of an entry of a list.

    Attributes:
        name: of the entry.
        key: the name; of later calls in the pass "name, call 2" ...
        kind: the entry's class.
        size: the shape of the first tensor that it was given.
        given: its arguments that are tensors, by name; dropped once they are done with, as `output`
            is.
        sources: argument to the call that returned it, and where among the leaves.
        ports: what its states are; None if it is no block.
    """

    name: str
    key: str
    kind: type[nn.Module]
    size: torch.Size | None
    given: dict[str, torch.Tensor]
    sources: dict[str, tuple["Ran", int]]
    output: Any = None
    ports: Ports | None = None

    def entered(self) -> tuple[torch.Tensor, ...]:
        assert self.ports is not None, "a block has ports"
        return tuple(self.given[name] for name in self.ports.names)


@dataclass(frozen=True)
class Role:
    """What a call of a block is to a stream: its block at `index`."""

    key: str
    name: str
    stream: Blocks
    index: int


class Record:
    """One pass of a network, recorded by `handles` on the entries of its lists.

    hidden   the image's states after the last block: one stream; a skipped step runs no block
    blocks   what each block adds to the states: one stream per block
    delta    what the front half of the blocks adds, and what the back half adds (Delta-DiT)

    Args:
        transformer: the network.
        tap: one of `BLOCK_TAPS`.
        keep: called with the name and the key of each stream, and its feature. The key is the name
            but at the second call of a block in a pass, which is a stream by itself.

    Attributes:
        roles: the key of a call to its role; None if it is not one of a block.
        sizes: stream to the shape of the first tensor that its first block was given.
        others: what is no block to the shape of the first tensor that it was given.
    """

    def __init__(
        self, transformer: nn.Module, tap: str, keep: Callable[[str, str, Any], None]
    ) -> None:
        self.transformer, self.tap, self.keep = transformer, tap, keep
        self.kind = type(transformer).__name__
        self.begin()

    def begin(self) -> None:
        """A pass begins."""
        self.roles: dict[str, Role | None] = {}
        self.sizes: dict[str, torch.Size | None] = {}
        self._forget()

    def _forget(self) -> None:
        self.calls: list[Ran] = []
        self.left = WeakTensorKeyDictionary()  # what was returned so far, to where
        self.links: dict[tuple[type, int], str] = {}  # a class's leaf to the argument it is next

    def handles(self) -> list[Any]:
        """Put hooks on the entries; they are to be removed by whoever asks for them."""
        found = []
        for name, entry in entries_of(self.transformer).items():
            enter = partial(self._enter, name)
            found.append(entry.register_forward_pre_hook(enter, with_kwargs=True))
            found.append(entry.register_forward_hook(self._leave))
        return found

    def end(self, output: Any) -> None:
        """The pass has ended, and the network has returned `output`.

        Raises:
            ValueError: the network does not have what the tap needs.
        """
        self._settle()
        blocks = [call for call in self.calls if call.ports]
        half = len(blocks) // 2
        if not blocks or (self.tap == "delta" and not half):
            has = "one block, which has no two halves" if blocks else "no blocks in its lists"
            raise ValueError(f"{self.kind} has {has}: use tap output or modules")
        parts = {"front": blocks[:half], "back": blocks[half:]}
        if self.tap == "hidden":
            parts = {"hidden": blocks}
            self._check_alone(blocks[-1], output)
        if self.tap == "delta":
            for part in parts.values():
                self._check_chain(part)
        if self.tap != "blocks":
            for name, part in parts.items():
                self._stream(name, name, part)
        self.others = {call.name: call.size for call in self.calls if not call.ports}
        self.roles |= dict.fromkeys((call.key for call in self.calls if not call.ports), None)
        self._forget()

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = arguments_of(type(module), args, kwargs)
        given = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
        sources = {k: self.left[v] for k, v in given.items() if v in self.left}
        for argument, (source, place) in sources.items():
            if source is self.calls[-1]:
                self.links.setdefault((source.kind, place), argument)
        self._settle()
        turn = 1 + sum(call.name == name for call in self.calls)
        key = name if turn == 1 else f"{name}, call {turn}"
        size = size_of(args, kwargs)
        self.calls.append(Ran(name, key, type(module), size, given, sources))

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        call = self.calls[-1]
        call.output = output
        for place, leaf in enumerate(pytree.tree_leaves(output)):
            if isinstance(leaf, torch.Tensor):
                self.left[leaf] = call, place

    def _settle(self) -> None:
        """Tell the ports of the last call, now that it is known where its results have gone."""
        if not self.calls:
            return
        call = self.calls[-1]
        call.ports = ports_of(call, self.links)
        if self.tap == "blocks" and call.ports:
            self._stream(call.name, call.key, [call])
        done = [] if call.ports and self.tap != "blocks" else [call]
        if call.ports and self.tap == "hidden":  # only the last is needed
            done = self.calls[:-1]
        for call in done:
            call.given, call.output = {}, None

    def _stream(self, name: str, key: str, part: list[Ran]) -> None:
        """Hand on the feature of a stream, and say what its calls are to it."""
        stream = Blocks([call.ports for call in part if call.ports], self.tap != "hidden")
        for index, call in enumerate(part):
            self.roles[call.key] = Role(key, name, stream, index)
        self.sizes[key] = part[0].size
        first = part[0].entered() if stream.residual else ()
        self.keep(name, key, stream.feature(first, part[-1].output))

    def _check_alone(self, last: Ran, output: Any) -> None:
        """Raise a ValueError if more than the image's states are used after the last block."""
        count = len(tensors(output))
        if count > 1 and last.ports and len(last.ports.names) > 1:
            raise ValueError(
                f"{self.kind} returns {count} tensors, made of several states of its last block, "
                "of which tap 'hidden' has one: use tap blocks, output or modules"
            )

    def _check_chain(self, part: list[Ran]) -> None:
        """Raise a ValueError unless what leaves a block enters the next, and nothing else."""
        for before, after in pairwise(part):
            assert before.ports and after.ports, "blocks have ports"
            found = [after.sources.get(name) for name in after.ports.names]
            users = [c for c in self.calls if any(s is before for s, _ in c.sources.values())]
            left = [(before, place) for place in before.ports.places]
            if users != [after] or found != left[: len(found)]:
                raise ValueError(
                    f"{after.key} of {self.kind} does not take just what {before.key} returns, or "
                    "others take it too, so that what both add cannot be taken: use tap blocks, "
                    "hidden, output or modules"
                )


def ports_of(call: Ran, links: Mapping[tuple[type, int], str]) -> Ports | None:
    """Return the ports of a call; None if it is not one of a block, or they cannot be told.

    Args:
        call: of an entry.
        links: where leaves of a class's results enter the next block.
    """
    leaves, form = pytree.tree_flatten(call.output)
    fits = {
        place: [k for k, given in call.given.items() if given.shape[1:] == leaf.shape[1:]]
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
    }
    others = [leaf for place, leaf in enumerate(leaves) if place not in fits]
    if not fits or any(leaf is not None for leaf in others):
        return None
    found: dict[str, int] = {}
    for place in sorted(fits, key=lambda place: (call.kind, place) not in links):
        free = [name for name in fits[place] if name not in found]
        name = links.get((call.kind, place))
        if name not in free:
            if not free or (len(fits) > 1 and len(free) > 1):
                return None
            name = free[0]
        found[name] = place
    names = tuple(name for name in call.given if name in found)
    return Ports(call.kind, names, tuple(found[name] for name in names), form)


def arguments_of(kind: type[nn.Module], args: tuple, kwargs: dict) -> dict[str, Any]:
    """Return the arguments of a call of a module, by the names of its parameters."""
    return dict(list(signature_of(kind.forward).bind(None, *args, **kwargs).arguments.items())[1:])


def size_of(args: tuple, kwargs: dict) -> torch.Size | None:
    """Return the shape of the first tensor among arguments."""
    given = (x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
    first = next(given, None)
    return None if first is None else first.shape


def entries_of(transformer: nn.Module) -> dict[str, nn.Module]:
    """Return the entries of a network's own lists of modules, by name.

    Raises:
        ValueError: it has none.
    """
    found = {
        f"{name}.{index}": entry
        for name, entries in transformer.named_children()
        if isinstance(entries, nn.ModuleList)
        for index, entry in enumerate(entries)
    }
    if not found:
        raise ValueError(f"{type(transformer).__name__} has no list of blocks")
    return found


@contextlib.contextmanager
def watching(transformer: nn.Module, tap: str, keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside a `with` block, call `keep` with the name and the feature of each stream that runs.

    It sees the features that the runtime would remember and forecast.
    """

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        keep(name, output)

    if tap in BLOCK_TAPS:
        record = Record(transformer, tap, lambda name, key, feature: keep(name, feature))
        handles = [
            transformer.register_forward_pre_hook(lambda module, args: record.begin()),
            transformer.register_forward_hook(lambda module, args, output: record.end(output)),
            *record.handles(),
        ]
    else:
        handles = [
            module.register_forward_hook(partial(leave, name))
            for name, module in tapped(transformer, tap).streams.items()
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
