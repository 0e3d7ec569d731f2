"""Memory: what is loaded when, models that take turns, and anchors kept on another device.

There is no accelerator here. Offloading is run with the CPU in its place: the hooks that move the
models are the same, and move nothing. The second device for anchors is torch's meta device with a
memory (`MetaMemory`), which can keep tensors and give them back, and cannot compute.
"""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxTransformer2DModel
from helpers import flow_timesteps, sampling, tiny_flux
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextModel, T5EncoderModel

from eigencache.calibration.sampler import Settings, encode, load_encoded, load_pipeline, sample
from eigencache.methods import METHODS, make_plan
from eigencache.plan import TAPS
from eigencache.predictors import Taylor
from eigencache.runtime import cached, disable_cache, enable_cache, forecast
from eigencache.schedules import Interval, Steps
from eigencache.tokens import ClusCa, ToCa

MODEL = Path(__file__).parents[2] / "data/emoji-flux"
SETTINGS = Settings(num_steps=6, height=64, width=64, max_sequence_length=16, dtype="float32")
GUIDED = Settings(**{**vars(SETTINGS), "true_cfg_scale": 2.0})
PROMPTS = ["a red apple", "a blue fish"]
ENCODERS, IMAGE_MODELS = (CLIPTextModel, T5EncoderModel), (FluxTransformer2DModel, AutoencoderKL)


def alive(kinds):
    """Return how many models of these classes are in memory."""
    return sum(issubclass(type(thing), kinds) for thing in gc.get_objects())


# ---- What is loaded when


@pytest.fixture(scope="module")
def images():
    """Return the images of both prompts, from a pipeline that was loaded whole."""
    pipe = load_pipeline(MODEL, "float32")
    return [sample(pipe, encode(pipe, p, SETTINGS), SETTINGS, 1).image.tobytes() for p in PROMPTS]


@pytest.mark.parametrize("low_memory", [False, True])
def test_images_do_not_depend_on_how_the_pipeline_is_loaded(images, low_memory):
    pipe, texts = load_encoded(MODEL, PROMPTS, SETTINGS, low_memory)
    assert hasattr(pipe.transformer, "_hf_hook") == low_memory
    made = [sample(pipe, text, SETTINGS, 1).image.tobytes() for text in texts]
    assert made == images and images[0] != images[1]


def test_embeddings_are_those_of_the_whole_pipeline():
    pipe = load_pipeline(MODEL, "float32")
    for text, prompt in zip(load_encoded(MODEL, PROMPTS, GUIDED)[1], PROMPTS, strict=True):
        expected = encode(pipe, prompt, GUIDED)
        assert text.keys() == expected.keys() and len(text) == 4
        assert all(torch.equal(text[name], expected[name]) for name in text)


def test_text_encoders_and_image_models_are_never_in_memory_together(monkeypatch):
    gc.collect()
    before, seen = (alive(ENCODERS), alive(IMAGE_MODELS)), []
    load = DiffusionPipeline.from_pretrained

    def watched(*args, **kwargs):
        pipe = load(*args, **kwargs)
        seen.append((alive(ENCODERS) - before[0], alive(IMAGE_MODELS) - before[1]))
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", watched)
    pipe, _ = load_encoded(MODEL, PROMPTS, SETTINGS)
    assert seen == [(2, 0), (0, 2)]
    assert pipe.text_encoder is None and pipe.tokenizer_2 is None


# ---- Models that take turns


@pytest.fixture(scope="module")
def plans():
    timesteps = timesteps_of(load_pipeline(MODEL, "float32"))
    return {tap: METHODS["TaylorSeer"].plan(4, timesteps, tap=tap) for tap in ("output", "modules")}


def timesteps_of(pipe):
    sample(pipe, encode(pipe, PROMPTS[0], SETTINGS), SETTINGS, 1)
    return pipe.scheduler.timesteps.double().numpy()


@pytest.mark.parametrize("tap", ["output", "modules"])
@pytest.mark.parametrize("first", ["offloading", "cache"])
def test_the_cache_and_offloading_go_together(plans, images, tap, first):
    """Offloading replaces its hooks after every image, and must leave those of the cache alone."""
    pipe, texts = load_encoded(MODEL, PROMPTS, SETTINGS)
    with cached(pipe.transformer, plans[tap]):
        expected = [sample(pipe, text, SETTINGS, 1).image.tobytes() for text in texts]
    if first == "offloading":
        pipe.enable_model_cpu_offload(device="cpu")
    stats = enable_cache(pipe.transformer, plans[tap])
    if first == "cache":
        pipe.enable_model_cpu_offload(device="cpu")
    made = [sample(pipe, text, SETTINGS, 1).image.tobytes() for text in texts]
    assert made == expected != images
    assert (stats.full, stats.skipped) == (8, 4)
    disable_cache(pipe.transformer)
    assert [sample(pipe, text, SETTINGS, 1).image.tobytes() for text in texts] == images
    calls = []
    move = pipe.transformer._hf_hook.pre_forward
    pipe.transformer._hf_hook.pre_forward = lambda *a, **k: (calls.append(a), move(*a, **k))[1]
    pipe.transformer(**arguments(pipe, texts[0]))
    assert len(calls) == 1  # offloading is still on


def arguments(pipe, text):
    return {
        "hidden_states": torch.zeros(1, 16, pipe.transformer.config.in_channels),
        "encoder_hidden_states": text["prompt_embeds"],
        "pooled_projections": text["pooled_prompt_embeds"],
        "timestep": torch.ones(1),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(16, 3),
    }


def test_the_transformer_moves_before_it_is_timed():
    pipe, texts = load_encoded(MODEL, PROMPTS[:1], SETTINGS, low_memory=True)
    events = []
    move = type(pipe.transformer._hf_hook).pre_forward

    class Watched(type(pipe.transformer._hf_hook)):
        def pre_forward(self, module, *args, **kwargs):
            events.append("moved")
            return move(self, module, *args, **kwargs)

    pipe.transformer._hf_hook.__class__ = Watched
    pipe.transformer.register_forward_pre_hook(lambda *_: events.append("called"))
    sample(pipe, texts[0], SETTINGS, 1)
    assert events[:2] == ["moved", "called"]


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
