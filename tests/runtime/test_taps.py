"""Taps: which features they take, what their forecasts put in their place, and what they refuse.

A dummy transformer, whose blocks add a linear function of the step, has forecasts in closed form.
"""

from contextlib import ExitStack, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, SD3Transformer2DModel
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from helpers import arguments_of, flow_timesteps, sampling, tiny_flux, tiny_pipeline
from torch import nn

from eigencache.calibration.recording import recording
from eigencache.methods import make_plan
from eigencache.plan import Plan
from eigencache.predictors import Newton, Reuse, Taylor
from eigencache.runtime import cached, enable_cache
from eigencache.runtime._taps import Blocks, Ports, blocks_of, full_features, tapped, watching
from eigencache.schedules import Steps

STEPS, FULL = 8, [0, 1, 2, 5]
TIMESTEPS = flow_timesteps(STEPS)
BLOCK_TAPS = ("hidden", "blocks", "delta")


def plan_of(tap, predictor=None, steps=FULL, weights=None, streams=()):
    plan = make_plan(Steps(steps), predictor or Taylor(1), TIMESTEPS, tap=tap)
    return Plan(
        plan.full, plan.weights if weights is None else weights, TIMESTEPS, tap, streams
    )  # fmt: skip


def sampled(model, **options):
    return list(sampling(model, TIMESTEPS, **options))


# ---- In closed form


class Adding(nn.Module):
    """Adds `base + slope step` to the image's states, and twice that to the text's."""

    order: tuple[int, ...] = (0,)

    def __init__(self, index):
        super().__init__()
        self.base, self.slope, self.calls = 1.0 + index, 0.5 - index, 0

    def forward(self, hidden_states, step, encoder_hidden_states=None):
        self.calls += 1
        added = self.base + self.slope * step
        states = [hidden_states + added]
        if len(self.order) > 1:
            states += [encoder_hidden_states + 2 * added]
        return states[0] if len(self.order) == 1 else tuple(states[i] for i in self.order)


class AddingImageFirst(Adding):
    order = (0, 1)


class AddingTextFirst(Adding):
    order = (1, 0)


KINDS = [[Adding] * 4, [AddingImageFirst] * 4, [AddingTextFirst] * 4,
         [AddingTextFirst, AddingTextFirst, AddingImageFirst, AddingImageFirst]]  # fmt: skip
for kind in (Adding, AddingImageFirst, AddingTextFirst):
    text = None if len(kind.order) == 1 else kind.order.index(1)
    TransformerBlockRegistry.register(
        kind, TransformerBlockMetadata(kind.order.index(0), text)
    )  # fmt: skip


class Dummy(nn.Module, CacheMixin):
    """A transformer of `Adding` blocks, whose image and text vary with the step as well."""

    def __init__(self, kinds):
        super().__init__()
        self.blocks = nn.ModuleList(kind(i) for i, kind in enumerate(kinds))

    def forward(self, hidden_states, timestep):
        step = int(np.abs(TIMESTEPS - float(timestep)).argmin())
        image = hidden_states * (1 + step)
        text = -hidden_states[:, :1] * (1 + step)
        for block in self.blocks:
            if len(block.order) == 1:
                image = block(image, step)
            else:
                states = block(image, step, encoder_hidden_states=text)
                image, text = (states[block.order.index(i)] for i in (0, 1))
        return (torch.cat([text, image], dim=1),)


def run(dummy):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = []
    for timestep in TIMESTEPS:
        with dummy.cache_context("cond"):
            outputs.append(dummy(x, torch.tensor([timestep]))[0])
    return outputs


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: kinds[0].__name__ + kinds[-1].__name__)
@pytest.mark.parametrize("tap", ["blocks", "delta"])
def test_what_is_added_linearly_is_forecast_exactly(kinds, tap):
    dummy = Dummy(kinds)
    plain = run(dummy)
    calls = [block.calls for block in dummy.blocks]
    with cached(dummy, plan_of(tap)):
        outputs = run(dummy)
    for output, expected in zip(outputs, plain, strict=True):
        torch.testing.assert_close(output, expected)
    assert [block.calls - before for block, before in zip(dummy.blocks, calls, strict=True)] == [
        len(FULL)
    ] * 4


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: kinds[0].__name__ + kinds[-1].__name__)
def test_linear_hidden_states_are_forecast_exactly_and_the_text_passes_by(kinds):
    dummy = Dummy(kinds)
    plain = run(dummy)
    with cached(dummy, plan_of("hidden")):
        outputs = run(dummy)
    for step, (output, expected) in enumerate(zip(outputs, plain, strict=True)):
        torch.testing.assert_close(output[:, 1:], expected[:, 1:])
        if step in FULL:
            assert torch.equal(output, expected)


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_reuse_adds_what_was_added_last(tap):
    dummy = Dummy(KINDS[0])
    plain = run(dummy)
    with cached(dummy, plan_of(tap, Reuse())):
        outputs = run(dummy)
    slope = sum(block.slope for block in dummy.blocks)
    x = plain[1] - plain[0]  # in which the image itself grows by x - slope a step
    for step, a in {3: 2, 4: 2, 6: 5, 7: 5}.items():
        late = (step - a) * (x if tap == "hidden" else slope)
        expected = plain[step] - late
        torch.testing.assert_close(outputs[step][:, 1:], expected[:, 1:])


def test_a_computed_stream_runs_on_a_forecast_one():
    dummy = Dummy(KINDS[0])
    reuse = plan_of("delta", Reuse()).weights
    weights = np.stack([reuse, reuse])
    weights[0, [3, 4]] = 0  # first the back is forecast alone, ...
    weights[1, [6]] = 0  # then the front alone, ...
    plan = plan_of("delta", weights=weights, streams=("front", "back"))  # and at step 7 both
    plain = run(dummy)
    calls = []
    with cached(dummy, plan) as stats:
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        outputs = []
        for timestep in TIMESTEPS:
            before = [block.calls for block in dummy.blocks]
            with dummy.cache_context("cond"):
                outputs.append(dummy(x, torch.tensor([timestep]))[0])
            calls.append([b.calls - c for b, c in zip(dummy.blocks, before, strict=True)])
    assert (stats.full, stats.skipped) == (4, 4)
    front, back = (sum(b.slope for b in half) for half in (dummy.blocks[:2], dummy.blocks[2:]))
    late = {3: back, 4: 2 * back, 6: front, 7: 2 * (front + back)}
    ran = {3: [1, 1, 0, 0], 4: [1, 1, 0, 0], 6: [0, 0, 1, 1], 7: [0, 0, 0, 0]}
    for step in range(STEPS):
        assert calls[step] == ran.get(step, [1, 1, 1, 1])
        expected = plain[step][:, 1:] - late.get(step, 0)
        torch.testing.assert_close(outputs[step][:, 1:], expected)


# ---- On FLUX


def recorded(pipe, *taps):
    """Return the features of taps in a full run: those of each stream, step by step."""
    features = {tap: {} for tap in taps}

    def keep(tap, stream, feature):
        features[tap].setdefault(stream, []).append(full_features(feature))

    with recording(pipe, taps, keep) as recorder:
        pipe(
            **arguments_of(0), num_inference_steps=STEPS, height=16, width=16,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        )  # fmt: skip
    assert len(recorder.timesteps) == STEPS
    return features


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_forecasts_are_of_the_features_that_are_recorded(flux, tap):
    """What calibration records at full steps is what the runtime forecasts from."""
    plan, features = plan_of(tap, Newton(1)), {}

    def keep(name, feature):
        features.setdefault(name, []).append(full_features(feature))

    with cached(flux, plan), ExitStack() as stack:
        for name, stream in tapped(flux, tap).streams.items():
            stack.enter_context(watching(stream, partial(keep, name)))
        sampled(flux)
    for steps in features.values():
        for step in set(range(STEPS)) - set(FULL):
            expected = sum(plan.weights[step, a] * steps[a] for a in FULL)
            torch.testing.assert_close(steps[step], expected, rtol=1e-4, atol=1e-5)


def test_recorded_features_add_up():
    pipe = tiny_pipeline()
    found = recorded(pipe, "blocks", "delta", "output")
    names = [name for name, _ in blocks_of(pipe.transformer)]
    assert list(found["blocks"]) == names and list(found["delta"]) == ["front", "back"]
    assert len(found["output"]["output"]) == STEPS
    for step in range(STEPS):
        for half, part in (("front", names[:2]), ("back", names[2:])):
            total = sum(found["blocks"][name][step] for name in part)
            torch.testing.assert_close(found["delta"][half][step], total, rtol=1e-4, atol=1e-5)


def test_the_hidden_state_is_what_the_final_norm_is_given():
    pipe, given = tiny_pipeline(), []
    norm = pipe.transformer.norm_out
    norm.register_forward_pre_hook(lambda module, args: given.append(args[0].flatten()))
    features = recorded(pipe, "hidden")["hidden"]
    assert list(features) == ["hidden"]
    assert all(map(torch.equal, features["hidden"], given))


def test_delta_counts_single_blocks_after_double_ones():
    model = tiny_flux(num_layers=1, num_single_layers=4)
    streams = tapped(model, "delta").streams
    singles = model.single_transformer_blocks
    assert streams["front"].modules == (model.transformer_blocks[0], singles[0])
    assert streams["back"].modules == tuple(singles[1:])


def test_streams_of_the_modules_tap_when_tokens_are_refreshed(flux):
    found = tapped(flux, "modules", refreshed=True)
    single = {f"single_transformer_blocks.{i}.{p}" for i in (0, 1) for p in ("attn", "proj_out")}
    assert set(found.streams) == single | {
        f"transformer_blocks.{i}.{p}" for i in (0, 1) for p in ("attn", "ff", "ff_context")
    }
    assert {name for name, mlp in found.mlps.items() if mlp.place.text} == {
        f"transformer_blocks.{i}.ff_context" for i in (0, 1)
    }
    assert {name for name, mlp in found.mlps.items() if mlp.place.fused} == {
        f"single_transformer_blocks.{i}.proj_out" for i in (0, 1)
    }
    assert [mlp.place.depth for mlp in found.mlps.values()] == [0, 0, 1, 1, 0, 1]


class CachedSD3(SD3Transformer2DModel, CacheMixin):
    """An SD3 with cache contexts, which diffusers does not give it."""


def test_a_block_that_drops_its_text_passes_none_on():
    """The last block of SD3 returns no text; it is forecast all the same."""
    model = CachedSD3(
        sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=8,
        pooled_projection_dim=8, pos_embed_max_size=4, out_channels=4,
    ).eval()  # fmt: skip
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    text, pooled = torch.ones(1, 3, 8), torch.ones(1, 8)
    for tap in BLOCK_TAPS:
        with cached(model, plan_of(tap)), torch.no_grad():
            for timestep in TIMESTEPS:
                with model.cache_context("cond"):
                    output = model(x, text, pooled, torch.tensor([timestep]))[0]
        assert output.isfinite().all()


# ---- What they refuse


class Unknown(nn.Module):
    pass


class OfUnknown(ModelMixin, ConfigMixin):
    def __init__(self, count):
        super().__init__()
        self.blocks = nn.ModuleList(Unknown() for _ in range(count))


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_blocks_that_diffusers_does_not_know_are_refused(tap):
    with pytest.raises(ValueError, match=r"of Unknown are its states .*: use tap output or mod"):
        enable_cache(OfUnknown(2), plan_of(tap))


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_what_has_no_blocks_is_refused(tap):
    with pytest.raises(ValueError, match="OfUnknown has no list of blocks"):
        tapped(OfUnknown(0), tap)


class TakesX(nn.Module):
    def forward(self, x):
        return x


TransformerBlockRegistry.register(TakesX, TransformerBlockMetadata(0))


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_blocks_whose_registered_arguments_are_wrong_are_refused(tap):
    model = OfUnknown(0)
    model.blocks = nn.ModuleList([TakesX(), TakesX()])
    with pytest.raises(ValueError, match=r"TakesX are its arguments \['hidden.*takes \['x'\]: use"):
        enable_cache(model, plan_of(tap))


class Backwards(Dummy):
    """Runs its blocks in another order than it lists them."""

    def __init__(self, kinds):
        super().__init__(kinds)
        self.run_in = [1, 0, 3, 2]

    def forward(self, hidden_states, timestep):
        step = int(np.abs(TIMESTEPS - float(timestep)).argmin())
        image = hidden_states * (1 + step)
        for i in self.run_in:
            image = self.blocks[i](image, step)
        return (torch.cat([hidden_states[:, :1], image], dim=1),)


@pytest.mark.parametrize("tap", ["hidden", "delta"])
@pytest.mark.parametrize("order", [[1, 0, 3, 2], [0, 1, 2, 3, 3], [0, 1, 2]])
def test_blocks_that_do_not_run_once_each_in_the_order_listed_are_refused(tap, order):
    dummy = Backwards(KINDS[0])
    dummy.run_in = order
    refused = pytest.raises(ValueError, match=r"not run its blocks once each.*: use tap 'output'")
    with cached(dummy, plan_of(tap)), refused:
        run(dummy)


@pytest.mark.parametrize("order", [[1, 0, 3, 2], [0, 1, 2, 3, 3, 0]])
def test_each_run_of_each_block_is_forecast_by_itself(order):
    """What a block adds is linear in the step, whenever it runs, and so forecast exactly."""
    dummy = Backwards(KINDS[0])
    dummy.run_in = order
    plain = run(dummy)
    with cached(dummy, plan_of("blocks")):
        for output, expected in zip(run(dummy), plain, strict=True):
            torch.testing.assert_close(output, expected)


class Side(nn.Module):
    """Works on tokens in a list of its own, which is no block."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, dtype=torch.float64)])

    def forward(self, x):
        return self.layers[0](x)


class WithSide(Dummy):
    tokens = slice(None)

    def __init__(self, kinds):
        super().__init__(kinds)
        self.side = Side()

    def forward(self, hidden_states, timestep):
        self.side(hidden_states[:, self.tokens])
        return super().forward(hidden_states, timestep)


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_what_would_go_on_running_for_every_token_is_refused(tap):
    dummy = WithSide(KINDS[0])
    refused = pytest.raises(ValueError, match=r"side\.layers\.0 of WithSide works on 3 tokens and")
    with cached(dummy, plan_of(tap)), refused:
        run(dummy)
    assert not any(module._forward_pre_hooks for module in dummy.modules())
    dummy.tokens = slice(1)
    with cached(dummy, plan_of(tap)):
        run(dummy)


class Doubling(nn.Module):
    """A part of a block: scales by a weight; an attention or an MLP to the tap."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4, bias=False, dtype=torch.float64))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x)


class Twice(nn.Module):
    """A block that calls one MLP for its image and then for its text, as CogView4's do."""

    def __init__(self):
        super().__init__()
        self.txt_mlp = Doubling()

    def forward(self, hidden_states, text):
        return hidden_states + self.txt_mlp(hidden_states), text + self.txt_mlp(text)


class OfTwice(nn.Module, CacheMixin):
    """Its text has as many tokens as its image, or one."""

    tokens = 3

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Twice(), Twice()])

    def forward(self, hidden_states, timestep):
        step = int(np.abs(TIMESTEPS - float(timestep)).argmin())
        image, text = hidden_states * (1 + step), hidden_states[:, : self.tokens] * (3 - step)
        for block in self.blocks:
            image, text = block(image, text)
        return (torch.cat([text, image], dim=1),)


@pytest.mark.parametrize("tokens", [3, 1])
def test_a_module_called_twice_per_pass_has_two_anchors(tokens):
    model = OfTwice()
    model.tokens = tokens
    with torch.no_grad():
        plain = run(model)
        before = [block.txt_mlp.calls for block in model.blocks]
        with cached(model, plan_of("modules")):
            for output, expected in zip(run(model), plain, strict=True):
                torch.testing.assert_close(output, expected)
    assert [b.txt_mlp.calls - n for b, n in zip(model.blocks, before, strict=True)] == [8, 8]


def test_a_skipped_step_of_other_shapes_is_refused():
    model = OfTwice()
    with cached(model, plan_of("modules")), torch.no_grad():
        x = torch.zeros(2, 3, 4, dtype=torch.float64)
        for step, timestep in enumerate(TIMESTEPS[:4]):
            refused = pytest.raises(ValueError, match=r"at step 3 blocks\.0\.txt_mlp is called wh")
            with model.cache_context("cond"), refused if step == 3 else nullcontext():
                model(x[: 1 if step == 3 else 2], torch.tensor([timestep]))


def test_one_block_has_no_halves():
    with pytest.raises(ValueError, match="Dummy has one block"):
        tapped(Dummy([Adding]), "delta")


def test_states_are_found_by_name_and_by_position():
    ports = Ports.of(AddingTextFirst(0))
    image, text = torch.zeros(1), torch.ones(1)
    for args, options in [
        ((image, 0, text), {}),
        ((image,), {"step": 0, "encoder_hidden_states": text}),
        ((), {"hidden_states": image, "step": 0, "encoder_hidden_states": text}),
    ]:
        assert ports.entering(args, options) == (image, text)
    assert ports.output((image, text)) == (text, image)
    assert ports.leaving((text, image)) == (image, text)
    assert ports.leaving((None, image)) == (image,)


def test_blocks_take_states_across_kinds():
    stream = Blocks([AddingTextFirst(0), AddingImageFirst(1)], residual=True)
    entered = (torch.zeros(2), torch.ones(2))
    feature = stream.feature(entered, (torch.full((2,), 3.0), torch.full((2,), 5.0)))
    assert [part.tolist() for part in feature] == [[3, 3], [4, 4]]
    left = stream.leaving(entered, feature)
    assert [part.tolist() for part in stream.output(0, left)] == [[5, 5], [3, 3]]
    assert [part.tolist() for part in stream.output(1, left)] == [[3, 3], [5, 5]]
