"""The runtime, on a tiny random FLUX: what it computes, skips, holds, forgets and refuses."""

import gc
import re
import weakref
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from helpers import flow_timesteps, sampling, tiny_flux
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from eigencache.methods import make_plan
from eigencache.plan import TAPS, Plan, PlanError
from eigencache.predictors import HiCache, Newton, Reuse, Taylor
from eigencache.runtime import cached, disable_cache, enable_cache, forecast
from eigencache.runtime._blocks import watching
from eigencache.runtime._taps import fingerprint, full_features, tapped, token_mean
from eigencache.schedules import Interval, Steps

STEPS = 12
TIMESTEPS = flow_timesteps(STEPS)
FULL = [0, 1, 2, 4, 7, 10]
TAPPED = re.compile(
    r"transformer_blocks\.\d+\.(attn|ff|ff_context)"
    r"|single_transformer_blocks\.\d+\.(attn|proj_mlp|act_mlp|proj_out)"
)

every_tap = pytest.mark.parametrize("tap", TAPS)


def plan_of(predictor=None, steps=FULL, timesteps=TIMESTEPS, tap="output"):
    return make_plan(Steps(steps), predictor or Taylor(2), timesteps, tap=tap)


def sampled(model, timesteps=TIMESTEPS, **options):
    return list(sampling(model, timesteps, **options))


def same(outputs, others):
    """Whether two samplings agree to the last bit at every step."""
    return len(outputs) == len(others) and all(map(torch.equal, outputs, others))


def stream_names(model):
    return set(tapped(model, "modules").streams)


# ---- What it computes


@every_tap
def test_all_steps_full_is_bit_identical_to_no_cache(flux, tap):
    plain = sampled(flux)
    with cached(flux, plan_of(steps=range(STEPS), tap=tap)):
        assert same(sampled(flux), plain)


@pytest.mark.parametrize("predictor", [Reuse(), Taylor(2), HiCache(2), Newton(1)], ids=str)
def test_skipped_outputs_are_the_weighted_sums_of_full_ones(flux, predictor):
    plan = plan_of(predictor)
    with cached(flux, plan):
        outputs = sampled(flux)
    for step in set(range(STEPS)) - set(FULL):
        terms = [plan.weights[step, a] * outputs[a].double() for a in FULL if a < step]
        torch.testing.assert_close(outputs[step].double(), sum(terms), rtol=1e-5, atol=1e-6)


def test_full_steps_after_skipped_ones_run_the_network_where_the_sampler_is(flux):
    with cached(flux, plan_of()):
        outputs = sampled(flux)
    seen = []
    hook = flux.register_forward_pre_hook(lambda m, a, kw: seen.append(kw), with_kwargs=True)
    with cached(flux, plan_of()):
        sampled(flux)
    hook.remove()
    with torch.no_grad():
        for step in FULL:
            assert torch.equal(flux(**seen[step])[0], outputs[step])


@pytest.mark.parametrize("order", [1, 2])
def test_taylor_on_modules_is_the_taylorseer_of_diffusers(flux, order):
    config = TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[
            r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
            r"single_transformer_blocks\.\d+\.proj_out",
        ],
    )
    full = [s for s in range(STEPS) if s < 3 or (s - 3 - 1) % 3 == 0]
    plain = sampled(flux)
    flux.enable_cache(config)
    theirs = sampled(flux)
    flux.disable_cache()
    with cached(flux, plan_of(Taylor(order), full, tap="modules")):
        mine = sampled(flux)
    for my, their in zip(mine, theirs, strict=True):
        torch.testing.assert_close(my, their, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mine[-1], plain[-1], rtol=1e-4, atol=1e-4)  # it did forecast


def test_each_stream_has_its_own_weights(flux):
    names = sorted(stream_names(flux))
    reuse, taylor = (plan_of(p, tap="modules").weights for p in (Reuse(), Taylor(1)))
    weights = np.stack([taylor if "attn" in name else reuse for name in names])
    plan = Plan(np.isin(range(STEPS), FULL), weights, TIMESTEPS, "modules", names)
    recorded = {name: [] for name in names}
    for name in names:
        flux.get_submodule(name).register_forward_hook(
            lambda module, args, output, record=recorded[name]: record.append(full_features(output))
        )
    with cached(flux, plan):
        sampled(flux)
    for name, features in recorded.items():  # step 3 is forecast from steps 1 and 2
        expected = 2 * features[2] - features[1] if "attn" in name else features[2]
        torch.testing.assert_close(features[3], expected, rtol=1e-5, atol=1e-6)


@every_tap
@pytest.mark.parametrize("return_dict", [True, False])
def test_the_kind_of_output_is_the_one_asked_for(flux, tap, return_dict):
    kinds = set()
    flux.register_forward_hook(lambda module, args, output: kinds.add(type(output)))
    with cached(flux, plan_of(tap=tap)):
        outputs = sampled(flux, return_dict=return_dict)
        assert kinds == {Transformer2DModelOutput if return_dict else tuple}
        assert same(outputs, sampled(flux, return_dict=not return_dict))


@every_tap
def test_arguments_may_be_positional(flux, tap):
    plan = plan_of(steps=[0, 1], timesteps=TIMESTEPS[:3], tap=tap)
    inputs = torch.ones(1, 4, 16), torch.ones(1, 3, 12), torch.ones(1, 10)
    ids = torch.zeros(4, 3), torch.zeros(3, 3)
    with cached(flux, plan) as stats, torch.no_grad():
        for timestep in TIMESTEPS[:3]:
            with flux.cache_context("cond"):
                flux(*inputs, torch.tensor([timestep / 1000]), *ids)
    assert (stats.full, stats.skipped) == (2, 1)


@pytest.mark.parametrize("unit", [1, 1000])
def test_timesteps_are_recognised_in_either_unit(flux, unit):
    with cached(flux, plan_of()) as stats:
        sampled(flux, unit=unit)
    assert (stats.full, stats.skipped) == (6, 6)


# ---- Precision


def test_a_forecast_in_half_precision_is_summed_in_single():
    # Weights that cancel, as an extrapolation's do: summed in bfloat16, the terms lose the rest.
    anchors = [torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()] * 3
    weights = [30.0, -61.3, 32.3]
    exact = anchors[0].double()
    mine = forecast(list(zip(anchors, weights, strict=True)))
    naive = sum(w * a for w, a in zip(weights, anchors, strict=True))
    assert mine.dtype == naive.dtype == torch.bfloat16
    assert ((mine - exact).abs() <= 2**-8 * exact.abs()).all()
    assert ((naive - exact).abs() > 2**-5 * exact.abs()).any()


def test_a_forecast_in_double_precision_keeps_it():
    anchors = [torch.tensor([1 + 2.0**-40], dtype=torch.float64), torch.ones(1).double()]
    assert forecast([(anchors[0], 2.0), (anchors[1], -1.0)]).item() == 1 + 2.0**-39


def test_a_forecast_leaves_its_anchors_as_they_were():
    anchors = [torch.ones(3), torch.full((3,), 2.0)]
    forecast([(anchors[0], 3.0), (anchors[1], 4.0)])
    assert torch.equal(anchors[0], torch.ones(3))
    assert torch.equal(anchors[1], torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("tap", "stream"),
    [("output", "output"), ("hidden", "hidden"), ("modules", "transformer_blocks.0.ff")],
)
def test_a_bfloat16_model_forecasts_in_single_precision(flux, tap, stream):
    flux.bfloat16()
    plan = plan_of(Taylor(1), [0, 1, 2, 3], tap=tap)  # far ahead: weights up to 9 that cancel
    outputs = []

    def keep(name, feature):
        if name == stream:
            outputs.append(full_features(feature).double())

    with cached(flux, plan), watching(flux, tap, keep):
        velocities = sampled(flux, time_dtype=torch.float32)
    assert all(velocity.dtype == torch.bfloat16 for velocity in velocities)
    for step in range(4, STEPS):
        exact = sum(w * f for w, f in zip(plan.weights[step, :4], outputs[:4], strict=True))
        assert ((outputs[step] - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shift", [1.0, 1.5, 2.0, 3.0, np.exp(0.5), np.exp(1.15)])
def test_timesteps_rounded_by_a_pipeline_in_half_precision_are_recognised(flux, dtype, shift):
    """The pipeline rounds twice: `t.to(dtype)`, then `/ 1000`. exp(1.15) is FLUX's at 1024^2."""
    timesteps = flow_timesteps(50, shift).astype(np.float32)
    with cached(flux.to(dtype), plan_of(Reuse(), [0, 1, 20], timesteps)) as stats:
        sampled(flux, timesteps)
    assert (stats.full, stats.skipped) == (3, 47)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_new_image_in_half_precision_is_not_taken_for_the_next_step(flux, dtype):
    """The first two timesteps of FLUX at 1024^2 are 6.4 apart, bfloat16 is as coarse as 4."""
    timesteps = flow_timesteps(50, np.exp(1.15))
    with cached(flux.to(dtype), plan_of(Reuse(), [0, 1], timesteps)) as stats:
        next(sampling(flux, timesteps))
        assert len(list(islice(sampling(flux, timesteps), 4))) == 4
    assert (stats.full, stats.skipped) == (3, 2)


# ---- What it counts and skips


@every_tap
def test_counts_grow_over_samplings_and_contexts(flux, tap):
    with cached(flux, plan_of(tap=tap)) as stats:
        assert (stats.full, stats.skipped) == (0, 0)
        sampled(flux)
        assert (stats.full, stats.skipped) == (6, 6)
        sampled(flux, context="uncond")
        assert (stats.full, stats.skipped) == (12, 12)


@contextmanager
def watched(model):
    """Yield the names of the modules whose own forward really ran; caches come on top of it."""
    ran = set()

    def watch(name, forward):
        @wraps(forward)
        def watching(*args, **kwargs):
            ran.add(name)
            return forward(*args, **kwargs)

        return watching

    for name, module in model.named_modules():
        if name:
            module.forward = watch(name, module.forward)
    yield ran
    for module in model.modules():
        vars(module).pop("forward", None)


@every_tap
def test_only_the_untapped_modules_run_at_a_skipped_step(flux, tap):
    with watched(flux) as ran, cached(flux, plan_of(tap=tap)):
        steps = []
        for _ in sampling(flux, TIMESTEPS):
            steps.append(set(ran))
            ran.clear()
    everything = {name for name, module in flux.named_modules() if name} - {
        "transformer_blocks", "single_transformer_blocks",
    }  # fmt: skip
    inside = {n for n in everything if any(TAPPED.fullmatch(p) for p in parents(n))}
    for step, names in enumerate(steps):
        if step in FULL:
            assert names >= {n for n in everything if TAPPED.fullmatch(n)}
        elif tap == "output":
            assert names == set()
        elif tap != "modules":
            assert not [name for name in names if "transformer_blocks" in name]
            assert {"x_embedder", "context_embedder", "norm_out", "proj_out"} <= names
        else:
            assert names.isdisjoint(inside)
            assert {"x_embedder", "norm_out", "single_transformer_blocks.0.norm"} <= names


def parents(name):
    """Return a module's name and those of all that contain it."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


# ---- What it holds


def needed_later(plan, step):
    """Return the full steps up to `step` that a later row of the plan has a weight for."""
    return {a for a in range(step + 1) if plan.weights[step + 1 :, a].any()}


@pytest.mark.parametrize("predictor", [Reuse(), Taylor(1), Taylor(2)], ids=str)
@pytest.mark.parametrize(
    "stream", ["output", "transformer_blocks.1.attn", "transformer_blocks.0.ff"]
)
def test_only_outputs_that_a_later_step_needs_are_alive(flux, predictor, stream):
    tap = "output" if stream == "output" else "modules"
    plan = plan_of(predictor, tap=tap)
    outputs = []  # of each step, a weak reference to the stream's first tensor

    def watch(module, args, output):
        outputs.append(weakref.ref(output if isinstance(output, torch.Tensor) else output[0]))

    tapped(flux, tap).streams[stream].register_forward_hook(watch)
    with cached(flux, plan):
        for step, _ in enumerate(sampling(flux, TIMESTEPS)):
            alive = {a for a in range(step) if outputs[a]() is not None}
            assert alive == needed_later(plan, step) - {step}
        del _
        assert len(outputs) == STEPS
        assert all(output() is None for output in outputs)


def held(model):
    """Return the state that the cache holds for the one context that was sampled."""
    (state,) = model._diffusers_hook.get_hook("eigencache_step").states._state_cache.values()
    return state


def size(features):
    """Return the bytes that features keep alive, each storage counted once."""
    storages = {x.untyped_storage() for x in pytree.tree_leaves(features)}
    return sum(len(storage) for storage in {s.data_ptr(): s for s in storages}.values())


@every_tap
@pytest.mark.parametrize("predictor", [Reuse(), Taylor(1), Taylor(2)], ids=str)
def test_no_more_bytes_are_held_than_later_steps_need(flux, tap, predictor):
    plan = plan_of(predictor, tap=tap)
    with watch_sizes(flux, tap) as sizes, cached(flux, plan):
        for step, _ in enumerate(sampling(flux, TIMESTEPS)):
            state = held(flux)
            needed = needed_later(plan, step) if step < STEPS - 1 else set()
            for name in sizes:
                anchors = state.anchors.get(name, {})
                assert set(anchors) == needed
                assert size(anchors) == len(needed) * sizes[name]
            assert not state.passing


@contextmanager
def watch_sizes(model, tap):
    """Yield the bytes of each stream's feature, by name, from the first call on."""
    sizes = {}

    def keep(name, feature):
        sizes[name] = sum(x.nbytes for x in pytree.tree_leaves(feature))

    with watching(model, tap, keep):
        yield sizes


class Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that are made while it is active."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(output):
            if isinstance(x, torch.Tensor):
                self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return output

    def bytes_beside(self, *tensors):
        known = {x.untyped_storage().data_ptr() for x in tensors}
        return sum(len(s) for pointer, s in self.storages.items() if pointer not in known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_forecast_allocates_its_result_and_at_most_one_float32_sum(dtype):
    anchors = [torch.ones(1000, dtype=dtype) for _ in range(3)]
    with Allocations() as allocations:
        result = forecast([(anchor, 0.5) for anchor in anchors])
    accumulator = 4000 if dtype == torch.bfloat16 else 0
    weight = 8 if dtype == torch.float64 else 4
    assert allocations.bytes_beside(*anchors) == result.nbytes + accumulator + weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_skipped_step_at_the_output_allocates_nothing_else(flux, dtype):
    plan = plan_of(Taylor(2))
    made = []
    original = flux.cache_context

    @contextmanager
    def counting(name):
        with original(name), Allocations() as allocations:
            yield
        made.append(sum(map(len, allocations.storages.values())))

    flux.to(dtype).cache_context = counting
    with cached(flux, plan):
        outputs = sampled(flux, time_dtype=torch.float32)
    accumulator = 4 * outputs[0].numel() if dtype == torch.bfloat16 else 0
    # Beside them: the timestep, a weight, and the coordinates that `sampling` makes.
    small = 4 * (1 + 1 + 4 * 3 + 3 * 3) + 8 * 2
    for step in set(range(STEPS)) - set(FULL):
        assert made[step] <= outputs[0].nbytes + accumulator + small


@pytest.mark.parametrize("first", [0, 6], ids=["a new image", "a wrong step"])
def test_outputs_of_an_interrupted_image_die_with_the_next_call(flux, first):
    outputs = []
    hook = flux.register_forward_hook(lambda m, a, output: outputs.append(weakref.ref(output[0])))
    with cached(flux, plan_of(Taylor(2))):
        list(islice(sampling(flux, TIMESTEPS), 4))
        assert [output() is not None for output in outputs] == [False, True, True, False]
        hook.remove()
        with suppress(PlanError):
            next(sampling(flux, TIMESTEPS[first:]))
        gc.collect()
        assert all(output() is None for output in outputs)


@every_tap
def test_zeros_in_place_of_silent_modules_take_no_memory(flux, tap):
    sizes = []
    for block in flux.single_transformer_blocks:
        block.act_mlp.register_forward_hook(
            lambda module, args, output: sizes.append(output.untyped_storage().nbytes())
        )
    with cached(flux, plan_of(tap=tap)):
        sampled(flux)
    small = [size for size in sizes if size <= 8]
    assert len(small) == (2 * (STEPS - len(FULL)) if tap == "modules" else 0)


# ---- What it forgets


@every_tap
def test_a_second_image_is_as_the_first(flux, tap):
    with cached(flux, plan_of(tap=tap)):
        first = sampled(flux)
        sampled(flux, seed=1)
        assert same(sampled(flux), first)


@every_tap
@pytest.mark.parametrize(
    "before",
    [
        {},
        pytest.param({"batch": 2}, marks=pytest.mark.slow),
        pytest.param({"tokens": 6}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_sampling_after_an_interrupted_one_is_as_a_fresh_one(flux, tap, before):
    with cached(flux, plan_of(tap=tap)):
        fresh = sampled(flux)
    for stop in (1, 3, 11):
        with cached(flux, plan_of(tap=tap)):
            list(islice(sampling(flux, TIMESTEPS, seed=1, **before), stop))
            assert same(sampled(flux), fresh), stop


@every_tap
def test_interleaved_contexts_are_as_each_alone(flux, tap):
    plan = plan_of(tap=tap)
    with cached(flux, plan):
        alone = sampled(flux, context="cond", seed=1), sampled(flux, context="uncond", seed=2)
    with cached(flux, plan):
        cond = sampling(flux, TIMESTEPS, context="cond", seed=1)
        uncond = sampling(flux, TIMESTEPS, context="uncond", seed=2)
        together = zip(*zip(cond, uncond, strict=True), strict=True)
        assert all(map(same, together, alone))


@every_tap
def test_disabling_leaves_the_model_as_it_was(flux, tap):
    plain = sampled(flux)
    enable_cache(flux, plan_of(tap=tap))
    sampled(flux)
    disable_cache(flux)
    assert same(sampled(flux), plain)
    registries = [m._diffusers_hook for m in flux.modules() if hasattr(m, "_diffusers_hook")]
    assert all(not registry.hooks for registry in registries)


def test_disabling_where_nothing_is_enabled_does_nothing(flux):
    disable_cache(flux)
    assert len(sampled(flux)) == STEPS


def test_an_error_inside_the_block_disables_the_cache(flux):
    plain = sampled(flux)
    with pytest.raises(ZeroDivisionError), cached(flux, plan_of()):
        list(islice(sampling(flux, TIMESTEPS), 3))
        raise ZeroDivisionError
    assert same(sampled(flux), plain)


@every_tap
def test_a_cache_can_be_enabled_again_with_another_plan(flux, tap):
    with cached(flux, plan_of(Reuse(), tap=tap)):
        sampled(flux)
    with cached(flux, plan_of(steps=range(STEPS), tap=tap)):
        outputs = sampled(flux)
    assert same(outputs, sampled(flux))


# ---- What it refuses


@every_tap
def test_enabling_twice_is_refused(flux, tap):
    with cached(flux, plan_of(tap=tap)), pytest.raises(ValueError, match="already enabled"):
        enable_cache(flux, plan_of())


def test_enabling_over_a_cache_of_diffusers_is_refused(flux):
    flux.enable_cache(TaylorSeerCacheConfig())
    with pytest.raises(ValueError, match="a cache of diffusers is enabled on the transformer"):
        enable_cache(flux, plan_of())


WRONG = {
    "fewer": flow_timesteps(10),
    "more": flow_timesteps(13),
    "shift": flow_timesteps(STEPS, shift=2.0),
    "late start": TIMESTEPS[1:],
    "one too many": np.append(TIMESTEPS, 1.0),
    "a gap": TIMESTEPS[[0, 1, 2, 4]],
    "a repeat": TIMESTEPS[[0, 1, 1]],
}


@every_tap
def test_other_timesteps_are_refused_and_the_next_image_is_right(flux, tap):
    with cached(flux, plan_of(tap=tap)):
        right = sampled(flux)
        for name, wrong in WRONG.items():
            with pytest.raises(PlanError, match="the plan, made for 12 steps, expects timestep"):
                sampled(flux, wrong)
            assert same(sampled(flux), right), name


def test_the_message_names_the_step_and_both_timesteps(flux):
    timesteps = np.array([1000.0, 900.0, 700.0])
    plan = plan_of(steps=[0, 1], timesteps=timesteps)
    with (
        cached(flux, plan),
        pytest.raises(PlanError, match=r"expects timestep 700 at step 2, the sampler is at 650\b"),
    ):
        sampled(flux, np.array([1000.0, 900.0, 650.0]))


def test_a_plan_of_another_model_is_refused(flux):
    compiled = torch.compile(flux)
    assert fingerprint(compiled) == fingerprint(flux)
    flux.register_to_config(quantization_config={"load_in_8bit": True})  # as a loader leaves it
    assert "quantization_config" in flux.config and fingerprint(compiled) == fingerprint(flux)
    other = fingerprint(tiny_flux(num_layers=1))
    plan = plan_of()
    plan = Plan(plan.full, plan.weights, plan.timesteps, plan.tap, model=other)
    with pytest.raises(
        PlanError, match=f"calibrated on model {other}, this is {fingerprint(flux)}"
    ):
        enable_cache(flux, plan)


def test_a_plan_of_this_architecture_is_accepted_whatever_its_weights(flux):
    plan = plan_of()
    plan = Plan(plan.full, plan.weights, plan.timesteps, plan.tap, model=fingerprint(flux))
    nn.init.zeros_(flux.proj_out.weight)
    with cached(flux, plan) as stats:
        sampled(flux)
    assert stats.skipped == 6


@pytest.mark.parametrize(
    ("tap", "streams", "message"),
    [("modules", ("transformer_blocks.0.attn",), "no weights for stream"), ("attic", (), "attic")],
)
def test_a_plan_that_does_not_fit_leaves_nothing_behind(flux, tap, streams, message):
    weights = plan_of().weights
    if streams:
        weights = weights[None]
    with pytest.raises(ValueError, match=message):
        enable_cache(flux, Plan(plan_of().full, weights, TIMESTEPS, tap, streams))
    with cached(flux, plan_of(tap="modules")) as stats:
        sampled(flux)
    assert stats.skipped == 6


# ---- Taps


def test_streams_of_the_modules_tap(flux):
    double = {f"transformer_blocks.{i}.{p}" for i in (0, 1) for p in ("attn", "ff", "ff_context")}
    single = {f"single_transformer_blocks.{i}.proj_out" for i in (0, 1)}
    assert stream_names(flux) == double | single


def test_what_has_no_blocks_has_no_modules_tap():
    with pytest.raises(ValueError, match="Linear has no blocks"):
        tapped(nn.Linear(1, 1), "modules")


def test_features_are_every_number_or_the_mean_over_tokens():
    one, two = torch.arange(6.0).reshape(1, 2, 3), torch.ones(1, 5, 1).bfloat16()
    assert full_features((one, two)).tolist() == [0, 1, 2, 3, 4, 5, 1, 1, 1, 1, 1]
    assert token_mean((one, two)).tolist() == [1.5, 2.5, 3.5, 1]
    assert full_features(two).dtype == token_mean(two).dtype == torch.float32


def test_a_published_interval_runs_from_end_to_end(flux):
    plan = make_plan(Interval(every=4), Taylor(1), TIMESTEPS, tap="modules")
    with cached(flux, plan) as stats:
        assert all(output.isfinite().all() for output in sampling(flux, TIMESTEPS))
    assert stats.full == len(plan.full_steps)
