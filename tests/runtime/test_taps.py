"""Taps: which features they take, what their forecasts put in their place, and what they refuse.

A dummy transformer, whose blocks add a linear function of the step, has forecasts in closed form.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, SD3Transformer2DModel
from diffusers.models.cache_utils import CacheMixin
from helpers import arguments_of, flow_timesteps, sampling, tiny_flux, tiny_pipeline
from torch import nn

from eigencache.calibration.recording import recording
from eigencache.methods import make_plan
from eigencache.plan import Plan
from eigencache.predictors import Newton, Reuse, Taylor
from eigencache.runtime import cached, enable_cache
from eigencache.runtime._blocks import Ran, entries_of, watching
from eigencache.runtime._taps import full_features, tapped
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

    with cached(flux, plan), watching(flux, tap, keep):
        sampled(flux)
    for steps in features.values():
        for step in set(range(STEPS)) - set(FULL):
            expected = sum(plan.weights[step, a] * steps[a] for a in FULL)
            torch.testing.assert_close(steps[step], expected, rtol=1e-4, atol=1e-5)


def test_recorded_features_add_up():
    pipe = tiny_pipeline()
    found = recorded(pipe, "blocks", "delta", "output")
    names = list(entries_of(pipe.transformer))
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


def features_of(model, tap):
    """Return the feature of each stream of a tap in one pass of FLUX."""
    found = {}
    with watching(model, tap, found.__setitem__):
        next(sampling(model, TIMESTEPS))
    return found


def test_delta_counts_single_blocks_after_double_ones():
    model = tiny_flux(num_layers=1, num_single_layers=4)
    blocks, halves = features_of(model, "blocks"), features_of(model, "delta")
    for half, part in (("front", list(blocks)[:2]), ("back", list(blocks)[2:])):
        for i, added in enumerate(halves[half]):
            total = sum(blocks[name][i] for name in part)
            torch.testing.assert_close(added, total, rtol=1e-4, atol=1e-5)


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


class OfNothing(ModelMixin, ConfigMixin):
    pass


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_what_has_no_blocks_is_refused(tap):
    with pytest.raises(ValueError, match="OfNothing has no list of blocks"):
        enable_cache(OfNothing(), plan_of(tap))


class Counting(Adding):
    """Returns a number too, which nothing could forecast."""

    def forward(self, hidden_states, step):
        return super().forward(hidden_states, step), self.calls


class OfCounting(Dummy):
    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states, _ = block(hidden_states, 0)
        return (hidden_states,)


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_blocks_that_return_more_than_states_are_refused(tap):
    refused = pytest.raises(ValueError, match="OfCounting has no blocks in its lists: no entry")
    dummy = OfCounting([Counting] * 2)
    with cached(dummy, plan_of(tap)), refused:
        run(dummy)


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


@pytest.mark.parametrize(
    ("tap", "order"),
    [
        ("delta", [1, 0, 3, 2]),
        ("blocks", [1, 0, 3, 2]),
        ("blocks", [0, 1, 2, 3, 3, 0]),
        ("blocks", [0, 1, 2]),
    ],
)
def test_blocks_are_taken_in_the_order_in_which_they_run(tap, order):
    """What a block adds is linear in the step, whenever it runs, and so forecast exactly."""
    dummy = Backwards(KINDS[0])
    dummy.run_in = order
    plain, before = run(dummy), [block.calls for block in dummy.blocks]
    with cached(dummy, plan_of(tap)):
        for output, expected in zip(run(dummy), plain, strict=True):
            torch.testing.assert_close(output, expected)
    calls = [block.calls - n for block, n in zip(dummy.blocks, before, strict=True)]
    assert calls == [len(FULL) * order.count(i) for i in range(4)]


@pytest.mark.parametrize("order", [[1, 0, 3, 2], [0, 1, 2, 3, 3, 0], [0, 1, 2]])
def test_the_hidden_state_is_that_of_the_block_that_runs_last(order):
    dummy, found = Backwards(KINDS[0]), []
    dummy.run_in = order
    with watching(dummy, "hidden", lambda name, feature: found.append(feature)):
        plain = run(dummy)
    assert [len(feature) for feature in found] == [1] * STEPS
    assert all(
        torch.equal(output[:, 1:], image) for output, (image,) in zip(plain, found, strict=True)
    )
    with cached(dummy, plan_of("hidden")):
        for output, expected in zip(run(dummy), plain, strict=True):
            torch.testing.assert_close(output[:, 1:], expected[:, 1:])


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 3, 3]])
def test_halves_are_refused_where_blocks_do_not_run_once_each(order):
    dummy = Backwards(KINDS[0])
    dummy.run_in = order
    refused = pytest.raises(
        ValueError, match=rf"runs {len(order)} blocks, and has 4 entries in its"
    )
    with cached(dummy, plan_of("delta")), refused:
        run(dummy)


def test_halves_are_in_running_order():
    dummy, found = Backwards(KINDS[0]), {}
    dummy.run_in = [3, 0, 1, 2]
    with watching(dummy, "delta", found.__setitem__):
        dummy(torch.zeros(1, 2, 4, dtype=torch.float64), torch.tensor([TIMESTEPS[0]]))
    added = {name: float(part[0, 0, 0]) for name, (part,) in found.items()}
    assert added == {"front": 4 + 1, "back": 2 + 3}


@pytest.mark.parametrize("tap", BLOCK_TAPS)
def test_another_order_at_a_skipped_step_is_refused(tap):
    dummy = Backwards(KINDS[0])
    x = torch.zeros(1, 2, 4, dtype=torch.float64)
    with cached(dummy, plan_of(tap)), dummy.cache_context("cond"):
        for timestep in TIMESTEPS[:3]:
            dummy(x, torch.tensor([timestep]))
        dummy.run_in = [0, 1, 2, 3]
        with pytest.raises(ValueError, match=r"at step 3 blocks\.0 is called where it was not"):
            dummy(x, torch.tensor([TIMESTEPS[3]]))


class Between(Backwards):
    """Does something to the states between two blocks, before or after the halves meet."""

    after = 0

    def forward(self, hidden_states, timestep):
        step = int(np.abs(TIMESTEPS - float(timestep)).argmin())
        image = hidden_states * (1 + step)
        for i, block in enumerate(self.blocks):
            image = block(image, step)
            if i == self.after:
                image = self.change(image)
        return (torch.cat([hidden_states[:, :1], image], dim=1),)

    def change(self, image):
        return image + 3


class Writing(Between):
    def change(self, image):
        return image.add_(3)


def test_what_goes_on_between_the_blocks_of_a_half_is_refused():
    dummy = Between(KINDS[0])
    refused = pytest.raises(ValueError, match=r"blocks\.1 of Between does not take just what bl")
    with cached(dummy, plan_of("delta")), refused:
        run(dummy)
    for after, tap in [(1, "delta"), (0, "blocks")]:
        dummy.after = after
        plain = run(dummy)
        with cached(dummy, plan_of(tap)):
            for output, expected in zip(run(dummy), plain, strict=True):
                torch.testing.assert_close(output, expected)


def test_halves_over_states_of_different_shapes_are_refused():
    """As in Z-Image and Lumina 2, whose blocks for the text run among those for the image."""

    class Refining(Dummy):
        def forward(self, hidden_states, timestep):
            text = self.blocks[0](hidden_states[:, :2], 0)
            image = self.blocks[1](hidden_states, 0)
            joint = self.blocks[2](torch.cat([text, image], dim=1), 0)
            return (self.blocks[3](joint, 0),)

    dummy = Refining(KINDS[0])
    refused = pytest.raises(
        ValueError, match=r"blocks\.1 of Refining does not take just what block"
    )
    with cached(dummy, plan_of("delta", Taylor(2))), refused:
        run(dummy)


def test_what_is_used_elsewhere_than_in_the_next_block_is_refused():
    """As in HunyuanDiT, whose later blocks take what earlier ones have returned."""

    class Skipping(Dummy):
        def forward(self, hidden_states, timestep):
            one = self.blocks[0](hidden_states, 0)
            two = self.blocks[1](one, 0)
            return (self.blocks[3](self.blocks[2](two, 0), 0, encoder_hidden_states=one),)

    dummy = Skipping(KINDS[0])
    refused = pytest.raises(ValueError, match=r"blocks\.1 of Skipping .* or others take it too, so")
    with cached(dummy, plan_of("delta")), refused:
        run(dummy)


@pytest.mark.parametrize(("tap", "after"), [("hidden", 3), ("blocks", 0), ("delta", 1)])
def test_states_that_are_written_into_are_refused(tap, after):
    dummy = Writing(KINDS[0])
    dummy.after = after
    refused = pytest.raises(ValueError, match=rf"writes into the states of blocks\.{after}: use")
    with cached(dummy, plan_of(tap)), refused:
        run(dummy)


@pytest.mark.parametrize("tap", ["hidden", "blocks"])
def test_a_block_that_calls_another_one_is_refused(tap):
    class Outer(Adding):
        def forward(self, hidden_states, step):
            return super().forward(self.inner[0](hidden_states, step), step)

    dummy = Dummy([Outer, Outer])
    dummy.inside = nn.ModuleList([Adding(2)])
    for block in dummy.blocks:
        block.inner = (dummy.inside[0],)  # not a module of the block
    refused = pytest.raises(
        ValueError, match=r"blocks\.0 of Dummy works on 3 tokens and is not part"
    )
    with cached(dummy, plan_of(tap)), refused:
        run(dummy)


def test_a_second_result_is_not_lost_at_the_hidden_tap():
    """As the sound of LTX-2, which is a state of its blocks beside the image."""

    class Both(Dummy):
        def forward(self, hidden_states, timestep):
            states = hidden_states, -hidden_states
            for block in self.blocks:
                states = block(states[0], 0, encoder_hidden_states=states[1])
            return states

    dummy = Both([AddingImageFirst] * 2)
    with (
        cached(dummy, plan_of("hidden")),
        pytest.raises(ValueError, match="Both returns several tensors, "),
    ):
        run(dummy)


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
        enable_cache(Dummy([Adding]), plan_of("delta"))


# ---- Which argument is a state


class Mixing(nn.Module):
    def forward(self, image, text, time, skip=None):
        return text, None, image


def ran(*args, output=None, **options):
    call = Ran("blocks.0", Mixing(), args, options)
    call.returned(Mixing()(*args, **options) if output is None else output)
    return call


IMAGE, TEXT, TIME = torch.zeros(1, 5, 4), torch.ones(2, 3, 4), torch.ones(1, 4)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((IMAGE, TEXT, TIME), {}),
        ((IMAGE,), {"time": TIME, "text": TEXT}),
        ((), {"text": TEXT, "skip": None, "time": TIME, "image": IMAGE}),
    ],
)
def test_states_are_told_by_their_shapes_but_for_the_batch(args, options):
    call = ran(*args, **options)
    call.find_states({})
    assert (call.names, call.places) == (("image", "text"), (2, 0))
    text, nothing, image = call.output((IMAGE, TEXT))
    assert text is TEXT and nothing is None and image is IMAGE
    assert call.output((IMAGE,)) == (None, None, IMAGE)


@pytest.mark.parametrize(
    ("links", "names"),
    [({}, ()), ({(Mixing, 0): "text"}, ("image", "text")), ({(Adding, 0): "text"}, ())],
)
def test_states_of_one_shape_are_told_by_where_they_enter_the_next_block(links, names):
    call = ran(IMAGE, IMAGE + 1, TIME)
    call.find_states(links)
    assert call.names == names
    assert call.places == ((2, 0) if names else ())


@pytest.mark.parametrize("output", [(), (torch.zeros(1, 5, 3),), (IMAGE, 3), [None], "no tensor"])
def test_what_returns_other_than_states_is_no_block(output):
    call = ran(IMAGE, TEXT, TIME, output=output)
    call.find_states({})
    assert call.names == ()
