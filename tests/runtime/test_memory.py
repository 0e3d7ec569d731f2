"""Memory: models that take turns, and anchors kept on another device.

There is no accelerator here. Offloading is run with the CPU in its place: the hooks that move the
models are the same, and move nothing. The second device for anchors is torch's meta device with a
memory (`MetaMemory`), which can keep tensors and give them back, and cannot compute.
"""

import weakref

import pytest
import torch
from helpers import flow_timesteps, sampling, tiny_flux
from torch.utils._python_dispatch import TorchDispatchMode

from eigencache.calibration.recording import timesteps_of
from eigencache.calibration.sampler import load_pipeline, sample
from eigencache.methods import METHODS, make_plan
from eigencache.plan import TAPS
from eigencache.predictors import Taylor
from eigencache.runtime import cached, disable_cache, enable_cache, forecast
from eigencache.schedules import Interval, Steps
from eigencache.tokens import ClusCa, ToCa

SMALL = {"num_inference_steps": 6, "height": 16, "width": 16, "max_sequence_length": 24}
PROMPTS = ["a red apple", "a blue fish"]


# ---- Models that take turns


@pytest.fixture(scope="module")
def plans(tiny_model):
    pipe = load_pipeline(tiny_model, "float32")
    timesteps = timesteps_of(pipe, {"prompt": PROMPTS[0]} | SMALL)
    return {tap: METHODS["TaylorSeer"].plan(4, timesteps, tap=tap) for tap in ("output", "modules")}


def images_of(pipe):
    return [sample(pipe, {"prompt": p} | SMALL, 1).frames[0].tobytes() for p in PROMPTS]


@pytest.fixture(scope="module")
def images(tiny_model):
    """Return the images of both prompts, from a pipeline that was loaded whole."""
    return images_of(load_pipeline(tiny_model, "float32"))


@pytest.mark.parametrize("low_memory", [False, True])
def test_images_do_not_depend_on_how_the_pipeline_is_loaded(tiny_model, images, low_memory):
    pipe = load_pipeline(tiny_model, "float32", "cpu", low_memory=low_memory)
    assert hasattr(pipe.transformer, "_hf_hook") == low_memory
    assert images_of(pipe) == images and images[0] != images[1]


@pytest.mark.slow
@pytest.mark.parametrize("tap", ["output", "modules"])
@pytest.mark.parametrize("first", ["offloading", "cache"])
@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "transformer"])
def test_the_cache_and_offloading_go_together(tiny_model, plans, images, tap, first, whole):
    """Offloading replaces its hooks after every image, and must leave those of the cache alone."""
    pipe = load_pipeline(tiny_model, "float32", "cpu")
    model = pipe if whole else pipe.transformer
    with cached(model, plans[tap]):
        expected = images_in(pipe)
    if first == "offloading":
        pipe.enable_model_cpu_offload(device="cpu")
    stats = enable_cache(model, plans[tap])
    if first == "cache":
        pipe.enable_model_cpu_offload(device="cpu")
    assert images_in(pipe) == expected != images
    assert (stats.full, stats.skipped) == (8, 4)
    disable_cache(model)
    assert images_in(pipe) == images
    calls = []
    move = pipe.transformer._hf_hook.pre_forward
    pipe.transformer._hf_hook.pre_forward = lambda *a, **k: (calls.append(a), move(*a, **k))[1]
    pipe.transformer(**given(pipe))
    assert len(calls) == 1  # offloading is still on


def images_in(pipe):
    """Return the images of both prompts, sampled as people do."""
    made = []
    for prompt in PROMPTS:
        noise = torch.Generator().manual_seed(1)
        made.append(pipe(prompt, generator=noise, **SMALL).images[0].tobytes())
    return made


def given(pipe):
    return {
        "hidden_states": torch.zeros(1, 16, pipe.transformer.config.in_channels),
        "encoder_hidden_states": torch.zeros(1, 16, pipe.transformer.config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, pipe.transformer.config.pooled_projection_dim),
        "guidance": torch.ones(1),
        "timestep": torch.ones(1),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(16, 3),
    }


def test_a_skipped_step_moves_nothing(tiny_model, plans):
    """The cache stands before offloading, so that what does not run is not moved either."""
    pipe = load_pipeline(tiny_model, "float32", "cpu", low_memory=True)
    moved, move = [], type(pipe.transformer._hf_hook).pre_forward

    class Watched(type(pipe.transformer._hf_hook)):
        def pre_forward(self, module, *args, **kwargs):
            moved.append("moved")
            return move(self, module, *args, **kwargs)

    pipe.transformer._hf_hook.__class__ = Watched
    with cached(pipe, plans["output"]):
        noise = torch.Generator().manual_seed(1)
        pipe(PROMPTS[0], generator=noise, **SMALL)
    assert len(moved) == 4


# ---- Anchors on another device


class MetaMemory(TorchDispatchMode):
    """Lets the meta device keep what is copied to it, and give it back, as a real one would.

    Attributes:
        kept: by the address of the meta tensor's storage, what was copied to it.
        fetched: how often something was brought back.
    """

    def __init__(self):
        super().__init__()
        self.kept, self.fetched = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and "device" in kwargs:
            source, target = args[0], torch.device(kwargs["device"])
            if source.device.type != "meta" and target.type == "meta":
                there = function(*args, **kwargs)
                here = {name: value for name, value in kwargs.items() if name != "device"}
                self.kept[there.untyped_storage()._cdata] = function(source, **here), there
                return there
            if source.device.type == "meta" and target.type != "meta":
                self.fetched += 1
                source, _ = self.kept[source.untyped_storage()._cdata]
                return function(source, **kwargs)
        return function(*args, **kwargs)


class Peak(TorchDispatchMode):
    """Follows the bytes, off the meta device, of what was made while it is active and is alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.bytes = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in leaves(output):
            if tensor.device.type != "meta":
                self.alive[tensor.untyped_storage()._cdata] = weakref.ref(tensor), tensor.nbytes
        held = {key: (ref, size) for key, (ref, size) in self.alive.items() if ref() is not None}
        self.alive = held
        self.bytes = max(self.bytes, sum(size for _, size in held.values()))
        return output


STEPS, FULL = 12, [0, 1, 2, 4, 7, 10]
TIMESTEPS = flow_timesteps(STEPS)


def plan_at(tap):
    return make_plan(Steps(FULL), Taylor(2), TIMESTEPS, tap=tap)


def plan_of(rule):
    return make_plan(Interval(every=4), Taylor(1), TIMESTEPS, tap="modules", refresh=rule)


def sampled(model, plan, anchor_device=None):
    with cached(model, plan, anchor_device):
        return list(sampling(model, TIMESTEPS, tokens=20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tap", TAPS)
def test_results_do_not_depend_on_where_anchors_are_kept(tap, dtype):
    plan, model = plan_at(tap), tiny_flux().to(dtype)
    here = sampled(model, plan)
    with MetaMemory() as memory:
        there = sampled(model, plan, "meta")
    assert all(map(torch.equal, here, there)) and memory.fetched


@pytest.mark.parametrize("rule", [ToCa(), ClusCa(clusters=4)], ids=["ToCa", "ClusCa"])
def test_recomputed_tokens_do_not_depend_on_where_anchors_are_kept(rule):
    plan, model = plan_of(rule), tiny_flux()
    here = sampled(model, plan)
    with MetaMemory():
        there = sampled(model, plan, "meta")
    assert all(map(torch.equal, here, there))


@pytest.mark.parametrize("plan", [*map(plan_at, TAPS), plan_of(ToCa())], ids=[*TAPS, "ToCa"])
def test_nothing_is_kept_where_it_was_made(plan):
    """Between two steps the anchors of every stream are where they were asked to be."""
    model = tiny_flux()
    with MetaMemory(), cached(model, plan, "meta"):
        for step, _ in enumerate(sampling(model, TIMESTEPS)):
            hook = model._diffusers_hook.get_hook("eigencache_step")
            (state,) = hook.states._state_cache.values()
            kept = leaves([state.anchors, [added for added, _ in state.refreshed.values()]])
            assert all(tensor.device.type == "meta" for tensor in kept)
            assert kept or step in (0, STEPS - 1)
            assert not state.passing


def leaves(held):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(held) if torch.is_tensor(leaf)]


def test_anchors_come_back_one_at_a_time():
    """A forecast holds its sum and one anchor, however many it is made of."""
    anchors = [torch.ones(1000) for _ in range(6)]
    with MetaMemory() as memory:
        there = [anchor.to("meta") for anchor in anchors]
        with Peak() as peak:
            total = forecast([(anchor, 0.5) for anchor in there], torch.device("cpu"))
    assert memory.fetched == 6 and total.tolist() == [3.0] * 1000
    assert peak.bytes == 2 * total.nbytes + 4  # a weight


def test_an_unknown_device_is_refused(flux):
    with pytest.raises(RuntimeError, match="attic"):
        enable_cache(flux, plan_at("output"), "attic")
    with cached(flux, plan_at("output")) as stats:
        list(sampling(flux, TIMESTEPS))
    assert stats.skipped
