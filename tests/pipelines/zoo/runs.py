"""Runs of a tiny pipeline without any cache: what the runtime is compared with."""

import contextlib
import copy
import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils import _pytree as pytree


@dataclass
class Run:
    """What one sampling did, step by step.

    Attributes:
        result: what the pipeline returned, as tensors.
        timesteps: `[T]`, those that `scheduler.step` was given.
        calls: how often each innermost module of each denoiser ran, for each step.
        scales: the same of each scale that a denoiser was given and that was not 0.
    """

    result: list[torch.Tensor]
    timesteps: np.ndarray
    calls: list[Counter]
    scales: list[Counter]

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def switches(self) -> list[int]:
        """The steps at which other modules run than at the step before, or more or fewer times.

        Or with a scale that was 0 or is now.
        """
        found = list(zip(self.calls, self.scales, strict=True))
        return [s for s in range(1, len(self)) if found[s] != found[s - 1]]


@contextlib.contextmanager
def stepping(case, replaced: Callable | None = None):
    """Watch `scheduler.step` of a pipeline without a cache.

    A call of `step` between which and the one before no denoiser ran is not a step of its own:
    Cosmos asks its scheduler first for the clean sample, and then steps with that, guided.

    Args:
        case: of the zoo.
        replaced: called with the step's index, a dictionary that lasts as long as the image, and
            the model output; returns what the scheduler is given in its place. A copy of the
            scheduler, as LTX 2 makes one for its sound, has its own index and dictionary.

    Yields:
        The timestep of each step, as it comes.
    """
    scheduler, timesteps, seen, calls = case.pipe.scheduler, [], {}, []
    assert "step" not in vars(scheduler), "a cache is enabled"
    original = type(scheduler).step
    hooks = [
        module.register_forward_pre_hook(lambda module, args: calls.append(None))
        for module in case.denoisers().values()
    ]

    @functools.wraps(original)  # some pipelines look which arguments `step` takes
    def step(self, *args, **kwargs):
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        state = seen.setdefault(id(self), {"index": -1, "calls": 0, "scheduler": self})
        if state["calls"] < len(calls):
            state |= {"index": state["index"] + 1, "calls": len(calls)}
            if self is scheduler:
                timesteps.append(float(bound.arguments["timestep"]))
            if replaced:
                output = bound.arguments["model_output"]
                bound.arguments["model_output"] = replaced(state["index"], state, output)
        return original(*bound.args, **bound.kwargs)

    scheduler.step = types.MethodType(step, scheduler)  # a copy binds it to itself
    try:
        yield timesteps
    finally:
        del scheduler.step
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def standing_in(denoisers: dict[str, torch.nn.Module], step: Callable[[], int], full):
    """Have each call of a denoiser return at steps that are not full what it last returned."""
    kept, at = {}, {}

    def after(module, args, output):
        now, (before, number) = step(), at.get(module, (None, 0))
        number = number + 1 if now == before else 0
        at[module] = now, number
        if full[now]:
            kept[module, number] = output
            return None
        return pytree.tree_map_only(torch.Tensor, torch.clone, kept[module, number])

    hooks = [module.register_forward_hook(after) for module in denoisers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def counting(denoisers: dict[str, torch.nn.Module]):
    """Count, inside the block, how often each innermost module of the denoisers runs."""
    calls, hooks = Counter(), []
    for name, denoiser in denoisers.items():
        for path, module in denoiser.named_modules():
            if not list(module.children()):
                hooks.append(
                    module.register_forward_pre_hook(
                        lambda module, args, key=f"{name}.{path}": calls.update([key])
                    )
                )
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def scaling(denoisers: dict[str, torch.nn.Module]):
    """Count, inside the block, the scales that are not 0: ControlNets stop by that."""
    scales = Counter()

    def before(module, args, kwargs):
        given = {k: v for k, v in kwargs.items() if "scale" in k and isinstance(v, int | float)}
        scales.update([(id(module), key) for key, value in given.items() if value])

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True) for module in denoisers.values()
    ]
    try:
        yield scales
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def repeating(network: torch.nn.Module, step: Callable[[], int]):
    """Give a network, at every step, what it was given at the first.

    Args:
        network: called at each step at most as often as at the first.
        step: returns at which step it is called.

    Yields:
        What it returns, as tensors: a list for each of its calls in a step, with a row per step.
    """
    given, returned, now = [], [], [0, 0]  # the step, and the number of the call in it

    def copied(leaves):
        return pytree.tree_map_only(torch.Tensor, torch.clone, leaves)

    def before(module, args, kwargs):
        now[:] = step(), now[1] + 1 if now[0] == step() else 0
        if now[0] == 0:
            now[1] = len(given)
            given.append(copied((args, kwargs)))
            returned.append([])
        return copied(given[now[1]])

    def after(module, args, output):
        leaves = pytree.tree_leaves(copied(output))
        returned[now[1]].append([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])

    hooks = [
        network.register_forward_pre_hook(before, with_kwargs=True),
        network.register_forward_hook(after),
    ]
    try:
        yield returned
    finally:
        for hook in hooks:
            hook.remove()


def recorded(case, number: int = 0, **changes) -> Run:
    """Sample prompt `number` without a cache and return what happened."""
    counts, scales = [], []
    with counting(case.denoisers()) as calls, scaling(case.denoisers()) as scaled:

        def ended(index, state, output):
            if state["scheduler"] is case.pipe.scheduler:
                for found, now in ((counts, calls), (scales, scaled)):
                    found.append(Counter(now))
                    now.clear()
            return output

        with stepping(case, ended) as timesteps:
            result = case(number, **changes)
    return Run(result, np.array(timesteps), counts, scales)


def reused(case, full, number: int = 0, **changes) -> list[torch.Tensor]:
    """Sample without a cache, but give the scheduler the last full step's output where not full.

    This is what a plan of `reuse_weights` must do, in a few lines: every network runs, and what it
    returns at a skipped step is dropped. A guider that remembers what it was given must see at
    such a step what the runtime has it see, which is the networks' last outputs.
    """
    step = [0]

    def last(index, state, output):
        step[0] = index + 1
        if full[index]:
            state["output"] = output
        return state["output"]

    remembers = case.stateful and standing_in(case.denoisers(), lambda: step[0], full)
    with stepping(case, last), remembers or contextlib.nullcontext():
        return case(number, **changes)


def half_of(run: Run) -> np.ndarray:
    """Return bool `[T]`: full are about half of the steps, and each at which the calls change.

    Gaps of one step and of two, and the first step after a gap of each.
    """
    full = np.isin(np.arange(len(run)) % 5, (0, 1, 3))
    full[run.switches] = True
    return full


def reuse_weights(full) -> np.ndarray:
    """Return float64 `[T, T]`: weight 1 on the last full step before each skipped one."""
    weights = np.zeros((len(full), len(full)))
    for step in np.flatnonzero(~np.asarray(full)):
        weights[step, np.flatnonzero(full[:step])[-1]] = 1
    return weights


HALF_WAY = 3


def calling(action, step: int = HALF_WAY) -> dict:
    """Return the argument that makes a pipeline call `action(pipe)` once a step has ended."""

    def callback(pipe, index, timestep, tensors):
        if index == step:
            action(pipe)
        return {}

    return {"callback_on_step_end": callback}


def twin(case):
    """Return a case whose pipeline was made from another's, and shares its networks and scheduler.

    It has its own guiders, if any: two images at once would meet in a shared one without a cache.
    """
    made, parts = copy.copy(case), case.pipe.components
    own = {name: copy.deepcopy(part) for name, part in parts.items() if "guider" in name}
    made.pipe = type(case.pipe).from_pipe(case.pipe, **own)
    made.pipe.set_progress_bar_config(disable=True)
    for name in ("resolutions", "default_sample_size"):  # set by the zoo; not taken over
        if hasattr(case.pipe, name):
            setattr(made.pipe, name, getattr(case.pipe, name))
    return made


def check_same(results, expected) -> None:
    """Raise an AssertionError unless two results agree to the last bit."""
    assert len(results) == len(expected)
    for i, (one, other) in enumerate(zip(results, expected, strict=True)):
        if not torch.equal(one, other):
            far = (one - other).abs().max() if one.shape == other.shape else "shape"
            raise AssertionError(f"tensor {i} of the result differs by up to {far}")


def kept(case) -> dict:
    """Return what lies on the scheduler and the denoisers: attributes, hooks and own methods."""
    found = {"scheduler": (id(case.pipe.scheduler), sorted(vars(case.pipe.scheduler)))}
    for name, denoiser in case.denoisers().items():
        for path, module in denoiser.named_modules():
            own = set(vars(module))
            hooks = {key for key, value in vars(module).items() if key.endswith("hooks") and value}
            # Where it had a hook diffusers leaves an empty registry, and the method of the class.
            if "_diffusers_hook" in own:
                own.remove("_diffusers_hook")
                hooks.update(module._diffusers_hook.hooks)
            if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
                own.remove("forward")
            found[f"{name}.{path}"] = sorted(own), sorted(hooks)
    found["pipeline"] = sorted(vars(case.pipe))
    return found


class Measured:
    """One case, what its plain run did, and plans for it.

    Attributes:
        case: of the zoo.
        plain: the run of prompt 0 without a cache.
        full: bool `[T]`, about half of the steps.
        expected: called with the number of a prompt, by default 0, it returns what the plan of
            these gives, made once without the runtime.
    """

    def __init__(self, case):
        self.case, self.plain = case, recorded(case)
        self.full = half_of(self.plain)
        self.expected = functools.cache(lambda number=0: reused(case, self.full, number))

    def plan(self, full=None):
        """Return the plan that reuses the last full step's output; by default half are full."""
        import eigencache

        full = self.full if full is None else full
        return eigencache.Plan(full, reuse_weights(full), self.plain.timesteps, "output")
