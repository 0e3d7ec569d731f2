"""Canaries for `eigencache/_upstream.py`: undocumented names of other libraries, one test each.

A test that fails here says what another library has changed. The message of its assertion, or the
test's docstring, says what of ours depends on it.
"""

import ast
import importlib
import pkgutil
import weakref
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
from accelerate.hooks import CpuOffload, ModelHook, add_hook_to_module
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.utils import BaseOutput
from helpers import arguments_of, tiny_flux, tiny_pipeline
from torch import nn

from eigencache import _upstream

ROOT = Path(__file__).parents[2]


def test_caches_mark_their_networks():
    """`runtime` refuses to stack caches by these marks."""
    model = tiny_flux()
    assert list(_upstream.CACHES) == ["is_cache_enabled", "_is_cached"]
    assert model.is_cache_enabled is False
    model.enable_cache(diffusers.FirstBlockCacheConfig())
    assert model.is_cache_enabled is True


def test_cache_dit_marks_its_networks():
    cache_dit = pytest.importorskip("cache_dit")
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe)
    assert pipe.transformer._is_cached is True
    cache_dit.disable_cache(pipe)
    assert not getattr(pipe.transformer, "_is_cached", False)


def test_no_other_file_of_the_core_uses_a_private_name_of_another_library():
    """Modules, attributes, and names given to getattr or hasattr that begin with one underscore."""
    core = [p for p in (ROOT / "eigencache").rglob("*.py") if "metrics" not in p.parts]
    trees = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in core}
    del trees["eigencache/_upstream.py"]
    own = {name for tree in trees.values() for node in ast.walk(tree) for name in _defined(node)}
    own |= {"_fields", "_getframe", "_replace"}  # Python's, whose documentation has them
    found = {
        path: sorted({name for node in ast.walk(tree) for name in _used(node)} - own)
        for path, tree in trees.items()
    }
    assert {path: names for path, names in found.items() if names} == {}


def _defined(node):
    """Yield the private names that a node of our code defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr


def _used(node):
    """Yield the private names, ours or others', that a node of our code uses."""
    names = []
    if isinstance(node, ast.Attribute):
        names = [node.attr]
    if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("eigencache"):
        names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
        names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    yield from (n for n in names if str(n).startswith("_") and not str(n).startswith("__"))


def test_caches_of_diffusers_are_known_by_their_hooks():
    """`cache_hook_in`, for runtime/_driver.py: every hook of every cache, and no other."""
    exact = {"text_kv_cache_transformer", "text_kv_cache_block"}  # it changes no output
    found = set()
    for module in pkgutil.iter_modules(diffusers.hooks.__path__):
        if "cache" in module.name or "broadcast" in module.name:
            part = importlib.import_module(f"diffusers.hooks.{module.name}")
            found |= {v for k, v in vars(part).items() if k.endswith("_HOOK")}
    assert found - exact - {"sea_cache_post_norm"} == {*_upstream.CACHE_HOOKS}


@pytest.mark.parametrize("on", ["", "proj_out"])
def test_a_hook_of_a_cache_is_found(on):
    network = nn.ModuleDict({"proj_out": nn.Linear(1, 1)})
    registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(network.get_submodule(on))
    registry.register_hook(diffusers.hooks.ModelHook(), "layerwise_casting")
    assert _upstream.cache_hook_in(network) is None
    registry.register_hook(diffusers.hooks.ModelHook(), "taylorseer_cache")
    assert _upstream.cache_hook_in(network) == (on, "taylorseer_cache")


def test_a_compiled_network_is_unwrapped():
    network = nn.Linear(1, 1)
    assert _upstream.unwrapped(torch.compile(network)) is network
    assert _upstream.unwrapped(network) is network


# ---- torch


def test_pytree_knows_the_outputs_of_diffusers():
    """`map_tensors` and `tensors` of runtime/_taps.py: features that are outputs of diffusers."""

    @dataclass
    class Output(BaseOutput):
        sample: torch.Tensor

    output = Output(sample=torch.ones(2))
    doubled = _upstream.pytree.tree_map(lambda x: 2 * x, output)
    assert type(doubled) is type(output)
    assert torch.equal(doubled.sample, torch.full((2,), 2.0))
    leaves = _upstream.pytree.tree_leaves((output, None, [torch.zeros(1)]))
    assert sum(map(torch.is_tensor, leaves)) == 2
    structure = _upstream.pytree.tree_structure
    assert structure((torch.ones(1),)) != structure(torch.ones(1))


def test_a_dictionary_by_tensors_forgets_them():
    """`Batch.beside` of calibration/simulator.py goes with the features that are its keys."""
    found, key = _upstream.WeakTensorKeyDictionary(), torch.ones(2)
    found[key] = [torch.zeros(1)]
    assert key in found and torch.ones(2) not in found
    held = weakref.ref(found[key][0])
    del key
    assert held() is None


def test_tensors_count_what_is_written_into_them():
    """`Record` of runtime/_blocks.py refuses blocks that write into their states."""
    tensor = torch.ones(2)
    before = _upstream.version_of(tensor)
    tensor + 1
    assert _upstream.version_of(tensor) == before
    tensor[:1].add_(1)
    assert _upstream.version_of(tensor) > before
    with torch.inference_mode():
        assert _upstream.version_of(torch.ones(2)) == 0


def test_compiling_in_place_is_seen():
    """`_Switch.place` of runtime/_driver.py must stand around what compile() made."""
    module = torch.nn.Linear(2, 2)
    assert getattr(module, _upstream.COMPILED) is None and not _upstream.is_compiled(module)
    module.compile(backend="eager")
    assert getattr(module, _upstream.COMPILED) is not None and _upstream.is_compiled(module)
    setattr(module, _upstream.COMPILED, lambda x: "called in its place")
    assert module(torch.ones(1, 2)) == "called in its place"


def test_a_compiled_wrapper_is_seen():
    """`_check_compiled` of runtime/__init__.py refuses it."""
    assert _upstream.is_compiled(torch.compile(torch.nn.Linear(2, 2), backend="eager"))


def test_a_compiled_forward_is_seen():
    """`_check_compiled` of runtime/__init__.py tells it from what may stay."""
    module = torch.nn.Linear(2, 2)
    assert not _upstream.has_compiled_forward(module)
    module.forward = torch.compile(module.forward, backend="eager")
    assert _upstream.has_compiled_forward(module)


# ---- accelerate


def test_offloading_wraps_the_forward_and_keeps_the_old_one():
    """`_Switch` of runtime/_driver.py and `_offloading_apart` of runtime/__init__.py."""
    module = torch.nn.Linear(2, 2)
    assert _upstream.offloading_of(module) is None
    forward = module.forward
    add_hook_to_module(module, CpuOffload("cpu"))
    assert isinstance(_upstream.offloading_of(module), ModelHook)
    assert module.__dict__[_upstream.WRAPPED] == forward


# ---- diffusers' hooks


class Doubling(_upstream.Hook):
    _is_stateful = True

    def __init__(self):
        super().__init__()
        self.states = _upstream.States(State)

    def new_forward(self, module, *args, **kwargs):
        self.states.get_state()
        return 2 * self.original(*args, **kwargs)


class State(_upstream.BaseState):
    def reset(self):
        pass


def test_a_hook_stands_in_for_a_module_and_can_run_it():
    """Every hook of runtime/_hooks.py: `new_forward` and `Hook.original`."""
    model = Model()
    expected = model.inner(torch.ones(1, 2))
    registry = _upstream.HookRegistry.check_if_exists_or_initialize(model.inner)
    assert _upstream.hook_of(model.inner, "doubling") is None
    hook = Doubling()
    registry.register_hook(hook, "doubling")
    assert _upstream.hook_of(model.inner, "doubling") is hook
    with model.cache_context("a"):
        assert torch.equal(model(torch.ones(1, 2)), 2 * expected)
    registry.remove_hook("doubling")
    assert _upstream.hook_of(model.inner, "doubling") is None
    assert torch.equal(model.inner(torch.ones(1, 2)), expected)


def test_a_stateful_hook_has_one_state_for_each_context():
    """`StepHook` of runtime/__init__.py, for bare transformers."""
    model, hook = Model(), Doubling()
    registry = _upstream.HookRegistry.check_if_exists_or_initialize(model.inner)
    registry.register_hook(hook, "doubling")
    for name in ("cond", "uncond", "cond"):
        with model.cache_context(name):
            model(torch.ones(1, 2))
    assert len(hook.states.held()) == 2
    assert all(isinstance(state, State) for state in hook.states.held())


class Model(torch.nn.Module, diffusers.models.cache_utils.CacheMixin):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x)


def test_blocks_of_flux_attend_to_the_text_first():
    """`_check_refreshable` of runtime/_taps.py: ToCa and ClusCa count the image's tokens last.

    Blocks return the image last too, as `HiddenHook` of runtime/_refreshing.py takes it.
    """
    model, seen = tiny_flux(), []
    assert isinstance(model, FluxTransformer2DModel)
    kinds = {type(b) for b in (*model.transformer_blocks, *model.single_transformer_blocks)}
    assert kinds == {*_upstream.TEXT_FIRST}
    single = model.single_transformer_blocks[0]
    single.attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    text, image = torch.zeros(1, 3, model.inner_dim), torch.ones(1, 5, model.inner_dim)
    time = torch.zeros(1, model.inner_dim)
    ids = torch.zeros(8, 3)
    left = single(image, text, time, model.pos_embed(ids))
    assert [len(state[0]) for state in left] == [3, 5]
    # Both are the same for all tokens of a kind before the attention.
    assert torch.equal(seen[0][:, :1].expand(-1, 3, -1), seen[0][:, :3])
    assert torch.equal(seen[0][:, 3:4].expand(-1, 5, -1), seen[0][:, 3:])


# ---- diffusers' pipelines


def test_a_pipeline_knows_its_device_and_its_progress_bar():
    """`sample` of calibration/sampler.py, and `quiet` of calibration/_calls.py."""
    pipe = tiny_pipeline()
    assert _upstream.device_of(pipe) == torch.device("cpu")
    pipe.set_progress_bar_config(disable=True, desc="kept")
    assert _upstream.progress_bar_of(pipe) == {"disable": True, "desc": "kept"}


def test_a_pipeline_announces_its_steps():
    """`Attachment._visited` of runtime/_driver.py: how many steps an image has."""
    pipe, seen = tiny_pipeline(), []
    pipe.set_progress_bar_config(disable=True)

    def ended(pipe, index, timestep, tensors):
        seen.append(_upstream.steps_announced(pipe))
        return {}

    pipe(
        **arguments_of(0), num_inference_steps=3, height=16, width=16, output_type="latent",
        callback_on_step_end=ended,
    )  # fmt: skip
    assert seen == [3, 3, 3]
    assert _upstream.steps_announced(object()) is None


def test_a_pipeline_says_which_parts_it_needs():
    """`pipeline_class` of calibration/sampler.py names what a folder lacks."""
    needed = _upstream.parts_needed(diffusers.FluxPipeline)
    assert {"transformer", "vae", "scheduler", "text_encoder", "tokenizer"} <= needed
    assert "image_encoder" not in needed  # optional
