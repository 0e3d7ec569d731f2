"""Blocks: in which order they run and what their states are, as one recorded pass shows.

The calls of the entries of the network's own lists of modules are recorded. An entry is a block if
all that it returns are tensors of the shapes of its arguments. Such an argument and what becomes of
it is a state; where a returned tensor enters the next block tells which of several states it is.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from eigencache._upstream import WeakTensorKeyDictionary, pytree, version_of
from eigencache.runtime._driver import signature_of
from eigencache.runtime._taps import tapped, tensors

BLOCK_TAPS = ("hidden", "blocks", "delta")
States = tuple[torch.Tensor, ...]  # in the order of a block's parameters: the image's come first
_ELSE = "use another tap, such as 'output'"


class Ran:
    """A call of an entry: what it was given and has returned, and what it is to a stream.

    Attributes:
        size: the shape of the first tensor that it was given.
        given: its arguments that are tensors, while they are needed, as `leaves` are.
        leaves: of what it returned, of the structure `form`.
        sources: an argument to the call that returned it, and where.
        names: of the arguments that are states, none of what is no block; and their `places` among
            the leaves.
        stream: its name; `first` and `last` say whether the block is the stream's first or last.
        key: the stream's name but of the second call of a block in a pass: "name, call 2".
    """

    def __init__(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.name, self.kind = name, type(module)
        self.size = size_of(args, kwargs)
        bound = signature_of(self.kind.forward).bind(module, *args, **kwargs).arguments
        self.given = {k: v for k, v in bound.items() if isinstance(v, torch.Tensor)}
        self.leaves: list[Any] = []
        self.sources: dict[str, tuple[Ran, int]] = {}
        self.names, self.places = tuple[str, ...](), tuple[int, ...]()
        self.stream = self.key = name
        self.first = self.last = True

    def returned(self, output: Any) -> None:
        self.leaves, self.form = pytree.tree_flatten(output)

    def output(self, states: States) -> Any:
        """Return states as the block returns them."""
        leaves = dict(zip(self.places, states, strict=False))
        return pytree.tree_unflatten(map(leaves.get, range(self.form.num_leaves)), self.form)

    def find_states(self, links: dict[tuple[type, int], str]) -> None:
        """Find the states, if it is a block and they can be told by shapes and `Record.links`."""
        there = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]
        found: dict[str, int] = {}
        for place in sorted(there, key=lambda place: (self.kind, place) not in links):
            shape, link = self.leaves[place].shape[1:], links.get((self.kind, place))
            # Without the batch: one text may serve all of its images, and leaves as many.
            free = [k for k, v in self.given.items() if v.shape[1:] == shape and k not in found]
            if link in free:
                free = [link]
            if not free or (len(free) > 1 and len(there) > 1):
                return
            found[free[0]] = place
        if all(leaf is None for i, leaf in enumerate(self.leaves) if i not in there):
            self.names = tuple(name for name in self.given if name in found)
            self.places = tuple(found[name] for name in self.names)


class Record:
    """A pass of a network: what is called when, and the features of streams.

    hidden   the image's states after the last block: one stream; a skipped step runs no block
    blocks   what each block adds to the states: one stream per block
    delta    what the front half of the blocks adds, and what the back half adds (Delta-DiT)

    Args:
        transformer: the network.
        tap: one of `BLOCK_TAPS`.
        keep: called with a stream's name, its key, the shape of what its first block was given, and
            what returns the feature.

    Attributes:
        on: whether the pass is recorded; else its calls are only counted.
        count: of the calls so far.
        open: the calls that have not returned; entries may call others.
        calls: all of them, where they are recorded.
    """

    def __init__(self, transformer: nn.Module, tap: str, keep: Callable) -> None:
        self.network, self.tap, self.keep = type(transformer).__name__, tap, keep
        self.entries = len(entries_of(transformer))
        self.half = self.entries // 2
        if tap == "delta" and not self.half:
            raise ValueError(f"{self.network} has one block, which has no two halves: {_ELSE}")
        self.begin()

    def begin(self, on: bool = True) -> None:
        """A pass begins."""
        self.on, self.count, self.calls, self.open = on, 0, list[Ran](), list[Ran]()
        self.seen = WeakTensorKeyDictionary()  # to their version then, and what returned them where
        # Where a leaf of what a class returns enters the block that runs next.
        self.links: dict[tuple[type, int], str] = {}

    def enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """An entry is about to be called."""
        call, self.count = Ran(name, module, args, kwargs), self.count + 1
        self.open.append(call)
        if not self.on:
            return
        for argument, state in call.given.items():
            known = self.seen.setdefault(state, (version_of(state), None, 0))
            if known[1] is not None:
                call.sources[argument] = known[1:]
            if self.calls and known[1] is self.calls[-1]:
                self.links.setdefault((known[1].kind, known[2]), argument)
        self._settle()
        turn = 1 + sum(before.name == name for before in self.calls)
        call.key += f", call {turn}" if turn > 1 else ""
        self.calls.append(call)

    def leave(self, output: Any) -> None:
        """The entry has returned."""
        call = self.open.pop()
        if self.on:
            call.returned(output)
            for place, leaf in enumerate(call.leaves):
                if isinstance(leaf, torch.Tensor):
                    version, *_ = self.seen.get(leaf, [version_of(leaf)])
                    self.seen[leaf] = version, call, place

    def end(self, output: Any) -> None:
        """The network has returned `output`.

        Raises:
            ValueError: the network does not have what the tap needs.
        """
        self._settle()
        blocks = [call for call in self.calls if call.names]
        if not blocks:
            raise ValueError(
                f"{self.network} has no blocks in its lists: no entry returns just tensors of the "
                f"shapes of its arguments; {_ELSE}"
            )
        if self.tap == "hidden":
            if len(tensors(output)) > 1 and len(blocks[-1].names) > 1:
                raise ValueError(
                    f"{self.network} returns several tensors, made of several states of its last "
                    f"block, of which tap 'hidden' has one: {_ELSE}"
                )
            self._stream("hidden", blocks)
        elif self.tap == "delta":
            if len(blocks) != self.entries:
                raise ValueError(
                    f"{self.network} runs {len(blocks)} blocks, and has {self.entries} entries in "
                    f"its lists, so 'delta' cannot tell the halves beforehand: {_ELSE}"
                )
            self._check_chain(blocks[: self.half])
            self._check_chain(blocks[self.half :])
        _forget(self.calls)

    def _settle(self) -> None:
        """Tell the states of the last call, now that it is known where its results have gone."""
        for call in self.calls[-1:]:
            call.find_states(self.links)
            blocks, done = [c for c in self.calls if c.names], [call]
            if call.names and self.tap == "blocks":
                self._stream(call.name, [call])
            elif call.names and self.tap == "hidden":  # only the last block is needed
                done = blocks[:-1]
            elif call.names:
                part = blocks[self.half :] or blocks
                done = part[1:-1]
                if len(blocks) in (self.half, self.entries):
                    self._check_chain(part)  # once more at the end, for what runs after it
                    self._stream("back" if part is not blocks else "front", part)
                    done = part
            _forget(done)

    def _stream(self, stream: str, part: list[Ran]) -> None:
        """Hand on the feature of a stream, and say what its calls are to it."""
        first, last = part[0], part[-1]
        for call in part:
            call.stream, call.first, call.last = stream, call is first, call is last
            call.key = call.key if self.tap == "blocks" else stream

        def feature() -> States:
            left = tuple(last.leaves[place] for place in last.places)
            entered = () if self.tap == "hidden" else tuple(first.given[k] for k in first.names)
            if any(self.seen[state][0] != version_of(state) for state in left + entered):
                raise ValueError(f"{self.network} writes into the states of {last.name}: {_ELSE}")
            if self.tap == "hidden":
                return left[:1]
            return tuple(after - before for after, before in zip(left, entered, strict=False))

        self.keep(stream, last.key, first.size, feature)

    def _check_chain(self, part: list[Ran]) -> None:
        """Raise a ValueError unless what leaves a block enters the next, and nothing else."""
        for before, after in pairwise(part):
            found = [after.sources.get(name) for name in after.names]
            left = [(before, place) for place in before.places][: len(found)]
            users = [c for c in self.calls if any(s is before for s, _ in c.sources.values())]
            if users != [after] or found != left:
                raise ValueError(
                    f"{after.name} of {self.network} does not take just what {before.name} returns"
                    f", or others take it too, so 'delta' cannot tell what both add: {_ELSE}"
                )


def _forget(calls: list[Ran]) -> None:
    for call in calls:
        call.given, call.leaves = {}, []


def size_of(args: tuple, kwargs: dict) -> torch.Size | None:
    """Return the shape of the first tensor among arguments."""
    return next((x.shape for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)


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
    hooks: dict[nn.Module, tuple[Callable, Callable]] = {}  # before and after a call
    if tap in BLOCK_TAPS:
        record = Record(
            transformer, tap, lambda stream, key, size, feature: keep(stream, feature())
        )
        hooks[transformer] = lambda *call: record.begin(), record.end
        for name, entry in entries_of(transformer).items():
            hooks[entry] = partial(record.enter, name), record.leave
    else:
        for name, module in tapped(transformer, tap).streams.items():
            hooks[module] = lambda *call: None, partial(keep, name)
    with contextlib.ExitStack() as stack:
        for module, (before, after) in hooks.items():
            leave = partial(lambda after, module, args, output: after(output), after)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield
