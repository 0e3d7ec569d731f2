"""Plans that recompute tokens, on a tiny random FLUX, against a slow and plain reference.

The reference computes every module at every step, and puts forecasts in place of their outputs
afterwards. It shares no code with the runtime but the weights of a plan.
"""

from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from helpers import flow_timesteps, sampling, tiny_flux
from slow_tokens import slow_attention_received, slow_clusca, slow_toca

from eigencache.methods import METHODS, make_plan
from eigencache.plan import Plan, PlanError
from eigencache.predictors import HiCache, Reuse, Taylor
from eigencache.runtime import cached, enable_cache
from eigencache.runtime._taps import tapped
from eigencache.schedules import Steps
from eigencache.tokens import ClusCa, ToCa

pytestmark = pytest.mark.slow

STEPS, TOKENS, TEXT = 11, 6, 3
TIMESTEPS = flow_timesteps(STEPS)
FULL = [0, 1, 4, 5, 9]  # gaps of three, four and two steps
RULES = [
    ToCa(0.5),
    ToCa(0.3, staleness_weight=2.0, layer_weight=1.0, step_weight=0.5),
    ClusCa(3),
    ClusCa(2, per_cluster=2, weight=0.5),
    ClusCa(6, weight=1.0),
]

every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def plan_of(rule, predictor=None, steps=FULL):
    plan = make_plan(Steps(steps), predictor or Taylor(1), TIMESTEPS, tap="modules")
    return Plan(plan.full, plan.weights, plan.timesteps, "modules", refresh=rule)


def sampled(model, **options):
    return list(sampling(model, TIMESTEPS, **{"tokens": TOKENS} | options))


def same(outputs, others):
    return len(outputs) == len(others) and all(map(torch.equal, outputs, others))


def assert_close(outputs, others):
    for mine, theirs in zip(outputs, others, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# ---- The reference


class Reference:
    """One sampling of one image by a plan with a rule, module by module, in NumPy."""

    def __init__(self, model, plan):
        self.model, self.plan, self.rule = model, plan, plan.refresh
        self.step, self.features, self.added, self.age = -1, {}, {}, {}
        self.received, self.clusters = {}, None

    def advance(self, module, args):
        self.step += 1
        if self.plan.full[self.step]:
            self.added, self.age = {}, {}

    def attention(self, name, scaled, query, key, value, **options):
        if self.plan.full[self.step]:
            numbers = (x.double().numpy() for x in (query, key))
            self.received[name] = slow_attention_received(*numbers, query.shape[-1] ** -0.5)[0]
        return scaled(query=query, key=key, value=value, **options)

    def replace(self, name, part, depth, module, args, output):
        """Return what a module is to return, from what it would: a tensor or a tuple of them."""
        if isinstance(output, tuple):
            pairs = enumerate(output)
            return tuple(
                self.replace(f"{name}.{i}", part, depth, module, args, x) for i, x in pairs
            )
        numbers = output[0].double().numpy()
        if self.plan.full[self.step]:
            self.features[name, self.step] = numbers
            return output
        row = self.plan.weights[self.step]
        forecast = sum(row[a] * self.features[name, a] for a in np.flatnonzero(row))
        if part != "attn":
            forecast = self.refreshed(name, part, depth, forecast, numbers)
        return torch.tensor(forecast, dtype=output.dtype)[None]

    def refreshed(self, name, part, depth, forecast, computed):
        predicted = forecast + self.added.get(name, 0)
        if isinstance(self.rule, ClusCa):
            if part == "ff_context":
                return forecast
            blended, _ = slow_clusca(predicted, computed, self.clusters, self.rule)
        else:
            blended = self.toca(name, part, depth, predicted, computed)
        self.added[name] = blended - forecast
        return blended

    def toca(self, name, part, depth, predicted, computed):
        rule, full = self.rule, [*self.plan.full_steps, STEPS]
        gap = next(b - a for a, b in pairwise(full) if a <= self.step < b)
        share = rule.ratio * (1 + rule.layer_weight * (1 - 2 * depth))
        share *= 1 + rule.step_weight * (1 - 2 * self.step / STEPS)
        share *= 1 + rule.stream_weight * (1 if part == "proj_out" else -1)
        received = self.received[name.rsplit(".", 1)[0]]
        received = {"ff_context": received[:TEXT], "ff": received[TEXT:]}.get(part, received)
        age = self.age.get(name, np.zeros(len(received)))
        count = max(1, int(share * len(received)))
        (picked,) = slow_toca(received[None], age[None], rule.staleness_weight, gap, count)
        self.age[name] = age + 1
        self.age[name][picked] = 0
        blended = predicted.copy()
        blended[picked] = computed[picked]
        return blended

    def cluster(self, module, args, output):
        if self.plan.full[self.step]:
            self.clusters = output[1][0].double().numpy()

    def run(self, monkeypatch, **options):
        scaled = torch.nn.functional.scaled_dot_product_attention
        hooks = ExitStack()
        hooks.callback(self.model.register_forward_pre_hook(self.advance).remove)
        for kind, parts in (
            ("transformer_blocks", ("attn", "ff", "ff_context")),
            ("single_transformer_blocks", ("attn", "proj_out")),
        ):
            blocks = getattr(self.model, kind)
            for index, block in enumerate(blocks):
                name, depth = f"{kind}.{index}", index / (len(blocks) - 1)
                hooks.callback(block.register_forward_pre_hook(partial(self.enter, name)).remove)
                for part in parts:
                    hook = partial(self.replace, f"{name}.{part}", part, depth)
                    module = block.get_submodule(part)
                    hooks.callback(module.register_forward_hook(hook).remove)
        hooks.callback(blocks[-1].register_forward_hook(self.cluster).remove)
        with hooks, monkeypatch.context() as patch:
            patch.setattr(
                torch.nn.functional,
                "scaled_dot_product_attention",
                lambda **kwargs: self.attention(self.inside, scaled, **kwargs),
            )
            return sampled(self.model, **options)

    def enter(self, name, module, args):
        self.inside = name


@every_rule
@pytest.mark.parametrize("predictor", [Reuse(), Taylor(1), HiCache(2)], ids=str)
def test_it_is_the_slow_reference(flux, monkeypatch, rule, predictor):
    plan = plan_of(rule, predictor)
    expected = Reference(flux, plan).run(monkeypatch)
    with cached(flux, plan):
        outputs = sampled(flux)
    assert_close(outputs, expected)
    plain = Plan(plan.full, plan.weights, plan.timesteps, "modules")
    with cached(flux, plain):
        assert not torch.allclose(sampled(flux)[-1], outputs[-1], rtol=1e-4, atol=1e-5)


# ---- Limits


@every_rule
def test_all_steps_full_is_bit_identical_to_no_cache(flux, rule):
    plain = sampled(flux)
    with cached(flux, plan_of(rule, steps=range(STEPS))):
        assert same(sampled(flux), plain)


def test_toca_of_no_token_is_fora(flux):
    plan = plan_of(ToCa(0), Reuse())
    with cached(flux, plan):
        outputs = sampled(flux)
    with cached(flux, Plan(plan.full, plan.weights, plan.timesteps, "modules")):
        assert same(sampled(flux), outputs)


def test_toca_of_all_tokens_computes_every_mlp(flux):
    """Then only the attention is forecast."""
    rule = ToCa(1.0, layer_weight=0, stream_weight=0)
    plan = plan_of(rule, Reuse())
    with cached(flux, plan):
        outputs = sampled(flux)
    with attention_forecast(flux, plan):
        assert_close(outputs, sampled(flux))


@contextmanager
def attention_forecast(model, plan):
    """Reuse every attention's last full output at skipped steps, and compute all else."""
    step, kept = [-1], {}

    def advance(module, args):
        step[0] += 1

    def replace(module, args, output):
        if plan.full[step[0]]:
            kept[module] = output
        return kept[module]

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(advance).remove)
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            stack.callback(block.attn.register_forward_hook(replace).remove)
        yield


# ---- What runs


@pytest.mark.parametrize("rule", [ToCa(0.5), ClusCa(2)], ids=str)
def test_only_picked_tokens_go_through_an_mlp(flux, rule):
    sizes = {}

    def count(name, forward):
        def counting(x):
            sizes.setdefault(name, []).append(x.shape[1])
            return forward(x)

        return counting

    fused = [f"single_transformer_blocks.0.{part}" for part in ("proj_mlp", "act_mlp", "proj_out")]
    names = ["transformer_blocks.0.ff", *fused]
    for name in names:
        module = flux.get_submodule(name)
        module.forward = count(name, module.forward)
    with cached(flux, plan_of(rule)):
        sampled(flux)
    for name in names:
        full = TOKENS if name.endswith("ff") else TEXT + TOKENS
        skipped = {size for step, size in enumerate(sizes[name]) if step not in FULL}
        assert [sizes[name][step] for step in FULL] == [full] * len(FULL)
        assert skipped == ({2} if isinstance(rule, ClusCa) else {1 if full == TOKENS else 9})


def test_clusters_are_made_anew_at_every_full_step(flux, monkeypatch):
    seen = []
    observe = ClusCa.observe
    monkeypatch.setattr(ClusCa, "observe", lambda self, x: seen.append(x) or observe(self, x))
    with cached(flux, plan_of(ClusCa(3))):
        sampled(flux)
    assert len(seen) == 3  # steps 0 and 4 are followed by full ones: nobody would use theirs
    assert all(x.shape == (1, TOKENS, 32) for x in seen)
    assert not torch.equal(seen[0], seen[1])


# ---- What it holds and forgets


def held(model):
    """Return the state that the cache holds for the one context that was sampled."""
    (state,) = model._diffusers_hook.get_hook("eigencache_step").states._state_cache.values()
    return state


@every_rule
def test_nothing_outlives_the_gap_or_the_image(flux, rule):
    refreshed = {
        name for name, mlp in tapped(flux, "modules", True).mlps.items()
        if rule.text or not mlp.place.text
    }  # fmt: skip
    with cached(flux, plan_of(rule)):
        for step, _ in enumerate(sampling(flux, TIMESTEPS, tokens=TOKENS)):
            state = held(flux)
            skipped_next = step + 1 < STEPS and step + 1 not in FULL
            added = refreshed if step not in FULL and skipped_next else set()
            assert set(state.refreshed) == added
            assert not state.passing
            if step in FULL:
                assert bool(state.seen) == skipped_next
        assert not (state.anchors or state.refreshed or state.seen or state.silence)


@every_rule
def test_what_tokens_added_is_forgotten_at_a_full_step_even_of_a_stream_computed_last(flux, rule):
    name = "single_transformer_blocks.1.proj_out"
    plan = plan_of(rule)
    streams = tuple(tapped(flux, "modules", refreshed=True).streams)
    weights = np.stack([plan.weights] * len(streams))
    weights[streams.index(name), 3] = 0
    plan = Plan(plan.full, weights, TIMESTEPS, "modules", streams, refresh=rule)
    with cached(flux, plan):
        for step, _ in enumerate(sampling(flux, TIMESTEPS, tokens=TOKENS)):
            assert (name in held(flux).refreshed) == (step in (2, 3, 6, 7))


@every_rule
def test_a_second_image_is_as_the_first(flux, rule):
    with cached(flux, plan_of(rule)):
        first = sampled(flux)
        sampled(flux, seed=1)
        assert same(sampled(flux), first)


@every_rule
@pytest.mark.parametrize("before", [{}, {"batch": 2}, {"tokens": 8}], ids=str)
def test_a_sampling_after_an_interrupted_one_is_as_a_fresh_one(flux, rule, before):
    with cached(flux, plan_of(rule)):
        fresh = sampled(flux)
    for stop in (1, 3, 6):
        with cached(flux, plan_of(rule)):
            list(islice(sampling(flux, TIMESTEPS, seed=1, **{"tokens": TOKENS} | before), stop))
            assert same(sampled(flux), fresh), stop


@every_rule
def test_interleaved_contexts_are_as_each_alone(flux, rule):
    options = {"tokens": TOKENS}
    with cached(flux, plan_of(rule)):
        alone = [sampled(flux, context=name, seed=i) for i, name in enumerate(["a", "b"])]
    with cached(flux, plan_of(rule)):
        pair = [
            sampling(flux, TIMESTEPS, context=name, seed=i, **options)
            for i, name in enumerate(["a", "b"])
        ]
        together = zip(*zip(*pair, strict=True), strict=True)
        assert all(map(same, together, alone))


@every_rule
def test_an_image_does_not_depend_on_its_batch(flux, rule):
    """The sampling of a batch of two, and that of its images one at a time."""
    inputs = []
    hook = flux.register_forward_pre_hook(lambda m, a, kw: inputs.append(kw), with_kwargs=True)
    with cached(flux, plan_of(rule)):
        both = sampled(flux, batch=2)
    hook.remove()
    for image in range(2):
        with cached(flux, plan_of(rule)):
            for step, call in enumerate(inputs):
                one = {
                    key: value[image : image + 1] if key in BATCHED else value
                    for key, value in call.items()
                }
                with torch.no_grad(), flux.cache_context("one"):
                    alone = flux(**one)[0]
                torch.testing.assert_close(alone[0], both[step][image], rtol=1e-4, atol=1e-5)


BATCHED = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")


@every_rule
def test_half_precision_keeps_its_dtype(flux, rule):
    flux.bfloat16()
    with cached(flux, plan_of(rule)):
        outputs = sampled(flux, time_dtype=torch.float32)
    assert all(output.dtype == torch.bfloat16 and output.isfinite().all() for output in outputs)


# ---- What it refuses


def test_more_clusters_than_image_tokens_are_refused(flux):
    with (
        cached(flux, plan_of(ClusCa())),
        pytest.raises(ValueError, match="cannot make 16 clusters of 6 image tokens"),
    ):
        sampled(flux)


@pytest.mark.parametrize("tap", ["output", "hidden", "blocks", "delta"])
def test_other_taps_are_refused(tap):
    plan = plan_of(ToCa())
    with pytest.raises(PlanError, match=f"at tap 'modules' only, not at '{tap}'"):
        Plan(plan.full, plan.weights, plan.timesteps, tap, refresh=ToCa())


def test_blocks_of_another_order_are_refused():
    model = SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=8,
        pooled_projection_dim=8, pos_embed_max_size=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="JointTransformerBlock cannot be recomputed"):
        enable_cache(model, plan_of(ToCa()))


def test_attention_that_cannot_be_seen_is_refused(flux, monkeypatch):
    unseen = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda **kwargs: unseen(**kwargs)
    )
    monkeypatch.setattr("eigencache.runtime._refreshing.scaled_dot_product_attention", object())
    with (
        cached(flux, plan_of(ToCa())),
        pytest.raises(ValueError, match=r"needs the attention of transformer_blocks\.0\.attn"),
    ):
        sampled(flux)


def test_a_rule_that_does_not_fit_leaves_nothing_behind():
    model = tiny_flux()
    plan = plan_of(ToCa())
    only = ("transformer_blocks.0.attn",)
    lacking = Plan(plan.full, plan.weights[None], TIMESTEPS, "modules", only, refresh=ToCa())
    with pytest.raises(PlanError, match="no weights for stream"):
        enable_cache(model, lacking)
    with cached(model, plan) as stats:
        sampled(model)
    assert stats.skipped == STEPS - len(FULL)


@every_rule
def test_a_saved_plan_samples_as_before(flux, tmp_path, rule):
    plan = plan_of(rule)
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded.refresh == rule
    with cached(flux, plan):
        before = sampled(flux)
    with cached(flux, loaded):
        assert same(sampled(flux), before)


def test_a_small_move_of_a_cluster_is_not_lost_in_half_precision(flux):
    """A thousandth of a bfloat16 is less than its last bit."""
    flux.bfloat16()
    with cached(flux, plan_of(ClusCa(1, weight=1e-3), Reuse())):
        for step, _ in enumerate(sampling(flux, TIMESTEPS, tokens=TOKENS)):
            if step == 2:
                added, _ = held(flux).refreshed["transformer_blocks.0.ff"]
                assert added.dtype == torch.bfloat16
                assert (added != 0).double().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Delta-DiT", {}),
        ("ToCa", {}),
        ("ClusCa", {"clusters": 4}),
        ("Hi-ClusCa", {"clusters": 4, "per_cluster": 2}),
    ],
)
def test_the_methods_of_the_table_run_from_end_to_end(flux, name, options):
    plan = METHODS[name].plan(5, TIMESTEPS, **options)
    with cached(flux, plan) as stats:
        outputs = sampled(flux)
    assert (stats.full, stats.skipped) == (5, STEPS - 5)
    assert all(output.isfinite().all() for output in outputs)
