"""The driver, on a tiny random FLUX pipeline: what runs, what is refused, and what stays behind."""

import contextlib
import copy
import gc
import threading
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import (
    EulerAncestralDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import (
    HookRegistry,
    ModelHook,
    apply_first_block_cache,
    apply_taylorseer_cache,
)
from fields import SIZE, FieldPipeline, field_pipeline
from helpers import arguments_of, tiny_flux, tiny_pipeline
from torch import nn

from eigencache import Plan, PlanError, cached, disable_cache, enable_cache
from eigencache.calibration.sampler import load_pipeline
from eigencache.methods import make_plan
from eigencache.plan import TAPS, PlanWarning
from eigencache.predictors import Newton, Reuse, Taylor
from eigencache.runtime import watched
from eigencache.runtime._driver import Driver, Policy
from eigencache.schedules import Steps
from reproduction.observing import held_bytes

STEPS, FULL = 8, [0, 1, 4]
INNER = [tap for tap in TAPS if tap != "output"]
every_tap = pytest.mark.parametrize("tap", TAPS)


def image(pipe, seed=0, steps=STEPS, **arguments):
    """Return the final latents of one image."""
    return pipe(
        **arguments_of(seed) | arguments, num_inference_steps=steps, height=16, width=16,
        generator=torch.Generator().manual_seed(seed), output_type="latent",
    ).images  # fmt: skip


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def timesteps():
    """The timesteps that the pipeline's scheduler takes, which depend on the resolution."""
    pipe = tiny_pipeline()
    image(pipe)
    return pipe.scheduler.timesteps.double().numpy()


def plan_of(timesteps, predictor=None, full=FULL, tap="output"):
    return make_plan(Steps(full), predictor or Taylor(1), timesteps, tap=tap)


@contextlib.contextmanager
def counted(**modules):
    """Yield how often each module's own forward ran."""
    calls, hooks = Counter(), []
    for name, module in modules.items():
        child = next(iter(module.children()))  # runs whenever the module does
        hooks.append(child.register_forward_pre_hook(lambda *_, name=name: calls.update([name])))
    yield calls
    for hook in hooks:
        hook.remove()


def by_hand(pipe, plan, seed=0, **arguments):
    """Sample by a plan in a few lines: every step runs, and the scheduler is given the sums."""
    scheduler, outputs = pipe.scheduler, []
    step = type(scheduler).step

    def patched(output, *rest, **named):
        row = plan.weights[len(outputs)]
        if row.any():
            terms = zip(row, [*outputs, output], strict=False)
            output = sum(w * x.double() for w, x in terms if w).to(output.dtype)
        outputs.append(output.clone())
        return step(scheduler, output, *rest, **named)

    scheduler.step = patched
    try:
        return image(pipe, seed, **arguments)
    finally:
        del scheduler.step


def left_behind(pipe):
    """Return what lies on a pipeline, its scheduler and its networks."""
    scheduler = pipe.scheduler
    found = {"pipe": sorted(vars(pipe)), "scheduler": (id(scheduler), sorted(vars(scheduler)))}
    for name, module in pipe.transformer.named_modules():
        hooks = [k for k, v in vars(module).items() if k.endswith("hooks") and v]
        registry = getattr(module, "_diffusers_hook", None)
        # Diffusers' hooks leave a `forward` behind that is the class's own.
        forward = getattr(vars(module).get("forward"), "__func__", type(module).forward)
        found[name] = forward is type(module).forward, hooks, registry and list(registry.hooks)
    return found


# ---- What it computes


@every_tap
def test_all_steps_full_is_bit_identical_and_nothing_stays(pipe, timesteps, tap):
    plain, before = image(pipe), left_behind(pipe)
    with cached(pipe, plan_of(timesteps, full=range(STEPS), tap=tap)) as stats:
        assert torch.equal(image(pipe), plain)
    assert (stats.full, stats.skipped) == (STEPS, 0)
    after = left_behind(pipe)
    # Of diffusers' registries, which an inner tap makes, empty ones remain.
    assert {k: v for k, v in after.items() if k != "pipe"} == {
        k: v if k in ("pipe", "scheduler") else (*v[:2], after[k][2] and [])
        for k, v in before.items() if k != "pipe"
    }  # fmt: skip
    assert after["pipe"] == before["pipe"]
    assert torch.equal(image(pipe), plain)


@pytest.mark.parametrize("predictor", [Reuse(), Taylor(2), Newton(1)], ids=str)
def test_a_plan_is_what_a_few_lines_do_and_skipped_steps_call_nothing(pipe, timesteps, predictor):
    plan = plan_of(timesteps, predictor)
    expected = by_hand(pipe, plan)
    with cached(pipe, plan) as stats, counted(transformer=pipe.transformer) as calls:
        torch.testing.assert_close(image(pipe), expected, rtol=1e-4, atol=1e-5)
    assert calls == {"transformer": len(FULL)}
    assert (stats.full, stats.skipped) == (len(FULL), STEPS - len(FULL))
    assert not torch.allclose(expected, image(pipe), atol=1e-3)


@every_tap
def test_images_in_a_row_equal_each_alone(pipe, timesteps, tap):
    alone = []
    for seed in range(3):
        with cached(pipe, plan_of(timesteps, tap=tap)):
            alone.append(image(pipe, seed))
    with cached(pipe, plan_of(timesteps, tap=tap)) as stats:
        for seed in range(3):
            assert torch.equal(image(pipe, seed), alone[seed])
        # Another batch size, and the first one again.
        two = image(pipe, 0, num_images_per_prompt=2)
        assert two.shape[0] == 2
        assert torch.equal(image(pipe, 0), alone[0])
    assert (stats.full, stats.skipped) == (5 * len(FULL), 5 * (STEPS - len(FULL)))


@every_tap
def test_true_guidance_has_anchors_for_each_of_its_passes(pipe, timesteps, tap):
    """With two passes a step, what is forecast linearly is forecast alike at all taps."""
    negative = {f"negative_{name}": tensor for name, tensor in arguments_of(9).items()}
    guided = negative | {"true_cfg_scale": 3.0}
    plain = image(pipe, **guided)
    assert not torch.allclose(plain, image(pipe), atol=1e-3)
    with cached(pipe, plan_of(timesteps, full=range(STEPS), tap=tap)) as stats:
        assert torch.equal(image(pipe, **guided), plain)
    assert stats.full == STEPS
    plan = plan_of(timesteps, tap=tap)
    with cached(pipe, plan) as stats, counted(transformer=pipe.transformer) as calls:
        made = image(pipe, **guided)
    assert calls["transformer"] == 2 * (len(FULL) if tap == "output" else STEPS)
    if tap == "output":
        expected = by_hand(pipe, plan, **guided)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    else:
        # Each pass alone: a network that is called once a step, for both prompts as a batch.
        both = tiny_pipeline()
        both.transformer = Doubled(pipe.transformer, {k: v for k, v in arguments_of(9).items()})
        with cached(pipe.transformer, plan):
            expected = image(both, **guided | {"true_cfg_scale": 1.0})
        assert torch.isfinite(made).all() and not torch.equal(made, plain)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


class Doubled(nn.Module):
    """A transformer that makes both passes of true guidance itself, in a cache context each."""

    def __init__(self, inner, negative):
        super().__init__()
        self.inner, self.negative = inner, negative
        self.config, self.dtype, self.device = inner.config, inner.dtype, inner.device
        self.cache_context = lambda name: contextlib.nullcontext()

    def forward(self, encoder_hidden_states, pooled_projections, **kwargs):
        with self.inner.cache_context("cond"):
            first = self.inner(
                encoder_hidden_states=encoder_hidden_states,
                pooled_projections=pooled_projections, **kwargs,
            )[0]  # fmt: skip
        with self.inner.cache_context("uncond"):
            second = self.inner(
                encoder_hidden_states=self.negative["prompt_embeds"],
                pooled_projections=self.negative["pooled_prompt_embeds"], **kwargs,
            )[0]  # fmt: skip
        return (second + 3.0 * (first - second),)


@every_tap
def test_image_to_image_takes_the_tail_of_the_timesteps(pipe, timesteps, tap):
    other = FluxImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    given = {"image": torch.rand(1, 3, 16, 16), "strength": 0.5}
    plain = image(other, **given)
    with watched(other) as stats:
        image(other, **given)
    assert stats.full == STEPS // 2
    tail = timesteps[-stats.full :]
    with cached(other, plan_of(tail, full=range(len(tail)), tap=tap)):
        assert torch.equal(image(other, **given), plain)
    with cached(other, plan_of(tail, full=[0, 2], tap=tap)) as stats:
        image(other, **given)
    assert (stats.full, stats.skipped) == (2, 2)
    with cached(other, plan_of(timesteps, tap=tap)), pytest.raises(PlanError, match="made for 8"):
        image(other, **given)


# ---- What it keeps


def test_anchors_are_freed_at_their_last_use(pipe, timesteps):
    plan = plan_of(timesteps, Taylor(1))
    kept, size = [], image(pipe).nbytes

    def look(pipe, step, timestep, given):
        kept.append(held_bytes(pipe))
        return {}

    with cached(pipe, plan):
        image(pipe, callback_on_step_end=look)
    needed = [sum(plan.weights[s + 1 :, a].any() for a in range(s + 1)) for s in range(STEPS)]
    assert kept == [n * size for n in needed] and max(needed) == 2 and needed[-1] == 0


def test_anchors_may_be_kept_on_another_device(pipe, timesteps):
    with cached(pipe, plan_of(timesteps)):
        expected = image(pipe)
    devices = set()

    def look(pipe, step, timestep, given):
        driver = vars(pipe)["_eigencache_driver"]
        devices.update(str(x.device) for x in driver.policy.anchors.values())
        return {}

    with cached(pipe, plan_of(timesteps), "cpu"):
        assert torch.equal(image(pipe, callback_on_step_end=look), expected)
    assert devices == {"cpu"}


class Scribbling(FlowMatchEulerDiscreteScheduler):
    """A scheduler that writes into what it was given, once it needs it no longer."""

    def step(self, model_output, timestep, sample, return_dict=True):
        result = super().step(model_output, timestep, sample, return_dict=return_dict)
        model_output.fill_(float("nan"))
        return result


def test_anchors_are_nobody_elses(timesteps):
    pipe, other = tiny_pipeline(), tiny_pipeline()
    other.scheduler = Scribbling.from_config(pipe.scheduler.config)
    with cached(pipe, plan_of(timesteps)), cached(other, plan_of(timesteps)):
        assert torch.equal(image(other), image(pipe))


@every_tap
def test_after_disabling_pipeline_and_plan_are_garbage(timesteps, tap):
    pipe = tiny_pipeline()
    enable_cache(pipe, plan_of(timesteps, tap=tap))
    image(pipe)
    driver = weakref.ref(vars(pipe)["_eigencache_driver"])
    disable_cache(pipe)
    disable_cache(pipe)  # does nothing
    gc.collect()
    assert driver() is None and held_bytes(pipe) == 0


# ---- What it refuses


@every_tap
def test_a_scheduler_that_is_swapped_is_an_error(pipe, timesteps, tap):
    own = pipe.scheduler
    with cached(pipe, plan_of(timesteps, tap=tap)):
        swapped = pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config)
        with pytest.raises(PlanError, match="scheduler was replaced while the cache is enabled"):
            image(pipe)
    assert pipe.scheduler is swapped  # the user's choice
    image(pipe)


def test_a_network_that_is_swapped_is_an_error(pipe, timesteps):
    with cached(pipe, plan_of(timesteps)):
        image(pipe)
        pipe.transformer = tiny_flux()
        with pytest.raises(PlanError, match="transformer was replaced while the cache is enabled"):
            image(pipe)
    image(pipe)


@every_tap
def test_a_second_cache_is_refused_and_the_first_goes_on(pipe, timesteps, tap):
    with cached(pipe, plan_of(timesteps, tap=tap)):
        expected = image(pipe)
    with cached(pipe, plan_of(timesteps, tap=tap)) as stats:
        for other in TAPS:
            with pytest.raises(ValueError, match="already enabled on this pipeline"):
                enable_cache(pipe, plan_of(timesteps, tap=other))
        with pytest.raises(ValueError, match="already enabled"), watched(pipe):
            pass
        assert torch.equal(image(pipe), expected)
    assert stats.skipped == STEPS - len(FULL)


CONFIGS = [FirstBlockCacheConfig(threshold=0.1), TaylorSeerCacheConfig(cache_interval=3)]


@every_tap
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_cache_of_diffusers_is_refused_below_and_above(pipe, timesteps, tap, config):
    plain = image(pipe)
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match=r"cache of diffusers is enabled on (the )?transformer"):
        enable_cache(pipe, plan_of(timesteps, tap=tap))
    pipe.transformer.disable_cache()
    with cached(pipe, plan_of(timesteps, tap=tap)):
        pipe.transformer.enable_cache(config)
        with pytest.raises(ValueError, match="cache of diffusers is enabled on transformer"):
            image(pipe)
        pipe.transformer.disable_cache()
        image(pipe)
    assert torch.equal(image(pipe), plain)


class Adapter(nn.Module):
    """What PEFT puts in the place of a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.low = nn.Linear(base.in_features, 2, bias=False)
        self.high = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.high(self.low(x))


def load_adapter(pipe):
    """Adapt a projection of a single block, whose output is a stream of the tap "modules"."""
    torch.manual_seed(1)
    block = pipe.transformer.single_transformer_blocks[0]
    block.proj_out = Adapter(block.proj_out)


def unload_adapter(pipe):
    block = pipe.transformer.single_transformer_blocks[0]
    block.proj_out = block.proj_out.base_layer


@every_tap
def test_a_lora_loaded_meanwhile_is_right_or_refused(pipe, timesteps, tap):
    load_adapter(pipe)
    plan = plan_of(timesteps, tap=tap)
    with torch.no_grad(), cached(pipe, plan):
        expected = image(pipe)
    unload_adapter(pipe)
    with torch.no_grad(), cached(pipe, plan):
        assert not torch.allclose(image(pipe), expected, atol=1e-4)
        load_adapter(pipe)
        if tap == "modules":
            with pytest.raises(PlanError, match=r"blocks\.0\.proj_out was replaced .* a LoRA"):
                image(pipe)
        else:
            assert torch.equal(image(pipe), expected)


@every_tap
def test_a_lora_unloaded_meanwhile_is_right_or_refused(pipe, timesteps, tap):
    plan = plan_of(timesteps, tap=tap)
    with torch.no_grad(), cached(pipe, plan):
        expected = image(pipe)
    load_adapter(pipe)
    with torch.no_grad(), cached(pipe, plan):
        image(pipe)
        unload_adapter(pipe)
        if tap == "modules":
            with pytest.raises(PlanError, match=r"blocks\.0\.proj_out was replaced .* a LoRA"):
                image(pipe)
        else:
            assert torch.equal(image(pipe), expected)


def test_an_unknown_scheduler_is_refused(pipe, timesteps):
    with pytest.raises(ValueError, match="has no scheduler with set_timesteps and step"):
        pipe.scheduler = None
        enable_cache(pipe, plan_of(timesteps))


# ---- Who is driven


def test_a_second_thread_is_told_that_there_is_one_image_at_a_time(pipe, timesteps):
    """And the image of the first goes on."""
    begun, done, made = threading.Event(), threading.Event(), []

    def wait(pipe, step, timestep, given):
        if step == 2:
            begun.set()
            assert done.wait(30)
        return {}

    with cached(pipe, plan_of(timesteps)):
        expected = image(pipe)
        thread = threading.Thread(
            target=lambda: made.append(image(pipe, callback_on_step_end=wait))
        )
        thread.start()
        assert begun.wait(30)
        with pytest.raises(PlanError, match=r"one image at\s+a time"):
            image(pipe)
        done.set()
        thread.join()
        assert made[0].shape == expected.shape
        assert torch.equal(image(pipe), expected)


def test_another_thread_may_go_on_after_an_image_was_abandoned(tiny_model):
    """The first that a pipeline calls is its text encoder, long before an image begins."""
    pipe = load_pipeline(tiny_model, "float32")
    arguments = {
        "num_inference_steps": 4, "height": 16, "width": 16, "max_sequence_length": 24,
        "output_type": "latent",
    }  # fmt: skip

    def sample(**more):
        noise = torch.Generator().manual_seed(0)
        return pipe("a cat", generator=noise, **arguments, **more).images

    sample()
    plan = plan_of(pipe.scheduler.timesteps.double().numpy(), full=[0, 2])
    made = []
    with cached(pipe, plan) as stats:
        expected = sample()
        for step in (1, 0):  # text encoders meet an image abandoned at a full step, and a skipped
            with pytest.raises(Halt):
                sample(callback_on_step_end=halting(step))
        thread = threading.Thread(target=lambda: made.append(sample()))
        thread.start()
        thread.join()
    assert torch.equal(made[0], expected)
    assert (stats.full, stats.skipped) == (2 + 1 + 1 + 2, 2 + 1 + 0 + 2)


class Halt(Exception):
    """What a callback raises to end an image."""


def halting(at):
    def callback(pipe, step, timestep, given):
        if step == at:
            raise Halt
        return {}

    return callback


def interrupting(at):
    def callback(pipe, step, timestep, given):
        pipe._interrupt = step == at
        return {}

    return callback


@every_tap
@pytest.mark.parametrize("at", range(3))
def test_an_image_that_ends_half_way_leaves_the_next_one_alone(pipe, timesteps, tap, at):
    with cached(pipe, plan_of(timesteps, tap=tap)):
        expected = image(pipe, 1)
        with pytest.raises(Halt):
            image(pipe, callback_on_step_end=halting(at))
        assert torch.equal(image(pipe, 1), expected)
        image(pipe, callback_on_step_end=interrupting(at))
        assert torch.equal(image(pipe, 1), expected)
        hook = pipe.transformer.proj_out.register_forward_pre_hook(fail_at(at))
        with pytest.raises(Halt):
            image(pipe)
        hook.remove()
        assert held_bytes(pipe) == 0
        assert torch.equal(image(pipe, 1), expected)


def fail_at(call):
    calls = []

    def hook(module, args):
        calls.append(None)
        if len(calls) > call:
            raise Halt

    return hook


def test_after_an_interrupt_networks_answer_to_others(pipe, timesteps):
    """A pipeline that shares the network, and its owner who calls it, are not stood in for."""
    other = FluxPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    plain = image(other)
    with cached(pipe, plan_of(timesteps)):
        for at in range(4):
            image(pipe, callback_on_step_end=interrupting(at))
            assert torch.equal(image(other), plain)


@every_tap
def test_a_pipeline_made_from_another_is_not_cached_with_it(pipe, timesteps, tap):
    before = FluxPipeline.from_pipe(pipe)
    before.set_progress_bar_config(disable=True)
    plain = image(before)
    with cached(pipe, plan_of(timesteps, tap=tap)) as stats:
        expected = image(pipe)
        counts = stats.full, stats.skipped
        assert torch.equal(image(before), plain)
        assert (stats.full, stats.skipped) == counts
        assert torch.equal(image(pipe), expected)
    assert torch.equal(image(before), plain)


def test_two_pipelines_that_share_a_network_are_each_cached_by_their_plan(pipe, timesteps):
    other = FluxPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    plans = plan_of(timesteps), plan_of(timesteps, Reuse(), [0, 3])
    alone = []
    for model, plan in zip((pipe, other), plans, strict=True):
        with cached(model, plan):
            alone.append(image(model))
    with cached(pipe, plans[0]) as one, cached(other, plans[1]) as two:
        for _ in range(2):
            assert torch.equal(image(pipe), alone[0])
            assert torch.equal(image(other), alone[1])
    assert (one.full, two.full) == (6, 4)
    assert not torch.equal(*alone)


@pytest.mark.parametrize("what", ["pipe", "scheduler", "transformer"])
@every_tap
def test_copies_made_meanwhile_are_not_cached(pipe, timesteps, what, tap):
    plain = image(pipe)
    with cached(pipe, plan_of(timesteps, tap=tap)):
        expected = image(pipe)
        if what == "pipe":
            other = copy.deepcopy(pipe)
        else:
            other = tiny_pipeline()
            setattr(other, what, copy.deepcopy(getattr(pipe, what)))
        assert torch.equal(image(other), plain)
        if tap == "output":  # a copied network brings the hooks of an inner tap with it
            with cached(other, plan_of(timesteps)):
                assert torch.equal(image(other), expected)
            assert torch.equal(image(other), plain)
        assert torch.equal(image(pipe), expected)


def test_a_pipeline_made_while_the_cache_is_on_may_have_one_too(pipe, timesteps):
    plan = plan_of(timesteps)
    plain = image(pipe)
    with cached(pipe, plan):
        expected = image(pipe)
        other = FluxPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        assert torch.equal(image(other), plain)
        with cached(other, plan) as stats:
            assert torch.equal(image(other), expected)
            assert torch.equal(image(pipe), expected)
        assert stats.full == len(FULL)
        assert torch.equal(image(other), plain)
    assert torch.equal(image(other), plain) and torch.equal(image(pipe), plain)


# ---- What the cache cannot see


class Loop(FieldPipeline):
    """A loop that somebody has written, in one of several ways."""

    way = "as usual"

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=10, generator=None):
        x, text = [torch.ones(1, SIZE), torch.zeros(1, SIZE)], torch.ones(1, SIZE)
        scheduler = self.kept if self.way == "kept" else self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        scheduler.set_begin_index(0)  # so that it does not look for the timestep
        network = self.transformer
        if self.way == "unseen":
            network = network.forward_of
        for t in scheduler.timesteps:
            if self.way == "one by one":
                output = network(torch.cat(x), t, text)
                x = [
                    scheduler.step(o[None], t, each).prev_sample
                    for o, each in zip(output, x, strict=True)
                ]
            else:
                told = t / 1000 if self.way == "divided" else t
                x = [scheduler.step(network(x[0], t, text), told, x[0]).prev_sample]
        return x[0]


def loop(way):
    pipe = field_pipeline()
    made = Loop(**pipe.components)
    made.way = way
    made.kept, made.transformer.forward_of = made.scheduler, made.transformer.law
    return made


def test_a_network_that_is_not_seen_is_told(timesteps):
    pipe = loop("unseen")
    pipe.transformer.forward_of = lambda x, t, text: x / 2
    pipe("a")
    plan = plan_of(pipe.scheduler.timesteps[:8].double().numpy())
    with cached(pipe, plan), pytest.raises(PlanError, match=r"none of the\s+networks"):
        pipe("a", 8)
    with watched(pipe):
        pipe("a")  # nothing is to be skipped


def test_a_scheduler_that_is_not_seen_is_told():
    pipe = loop("kept")
    with cached(pipe, full_steps=3), pytest.warns(PlanWarning, match="the cache does nothing"):
        pipe("a")


def test_latents_that_are_stepped_one_by_one_are_told():
    pipe = loop("one by one")
    with cached(pipe, full_steps=3), pytest.raises(PlanError, match="each of several latents"):
        pipe("a")


def test_a_plan_of_more_steps_is_refused_whatever_timesteps_are_called():
    pipe = loop("divided")
    pipe("a")
    plan = plan_of(pipe.scheduler.timesteps.double().numpy())
    with cached(pipe, plan):
        pipe("a")
        with pytest.raises(PlanError, match="made for 10 steps, the sampler takes 6"):
            pipe("a", 6)


def test_a_pipeline_that_calls_another_is_told(pipe):
    pipe.inner = FluxPipeline.from_pipe(pipe)
    pipe.inner.scheduler = pipe.scheduler
    with pytest.raises(ValueError, match=r"enable the cache on pipe\.inner"):
        enable_cache(pipe, full_steps=3)
    enable_cache(pipe.inner, full_steps=3)


def test_guidance_that_begins_by_a_second_pass_makes_the_next_step_full():
    """That the second pass came is seen when the first is over."""
    pipe = field_pipeline()

    class Later(FieldPipeline):
        @torch.no_grad()
        def __call__(self, steps=10):
            x, text = torch.ones(1, SIZE), torch.ones(1, SIZE)
            self.scheduler.set_timesteps(steps)
            for step, t in enumerate(self.scheduler.timesteps):
                output = self.transformer(x, t, text)
                if step >= 5:
                    output = 3 * output - 2 * self.transformer(x, t, 0 * text)
                x = self.scheduler.step(output, t, x).prev_sample
            return x

    later = Later(**pipe.components)
    later()
    timesteps = later.scheduler.timesteps.double().numpy()
    ran = []
    with cached(later, plan_of(timesteps, Reuse(), [0, 3, 8])) as stats:
        later.transformer.calls.clear()
        later()
        ran.append(stats.full)
    assert ran == [4]
    assert len(later.transformer.calls) == 2 + 2 + 2  # steps 0 and 3; 6, of two passes; 8, too


# ---- What others put around a network meanwhile


class Counting(ModelHook):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_hooks_may_come_and_go_while_the_cache_is_on(pipe, timesteps):
    plain, before, meanwhile = image(pipe), Counting(), Counting()
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    registry.register_hook(before, "before")
    with cached(pipe, plan_of(timesteps)) as stats:
        expected = image(pipe)
        assert before.calls == len(FULL)
        registry.register_hook(meanwhile, "meanwhile")
        for _ in range(2):
            assert torch.equal(image(pipe), expected)
        assert (before.calls, meanwhile.calls) == (3 * len(FULL), 2 * len(FULL))
        registry.remove_hook("meanwhile")
        assert torch.equal(image(pipe), expected)
        assert (before.calls, meanwhile.calls) == (4 * len(FULL), 2 * len(FULL))
        registry.register_hook(meanwhile, "meanwhile")
        assert torch.equal(image(pipe), expected)
    assert (stats.full, stats.skipped) == (5 * len(FULL), 5 * (STEPS - len(FULL)))
    calls = before.calls, meanwhile.calls
    assert torch.equal(image(pipe), plain)
    assert (before.calls, meanwhile.calls) == (calls[0] + STEPS, calls[1] + STEPS)
    registry.remove_hook("meanwhile")
    assert torch.equal(image(pipe), plain)
    assert before.calls == calls[0] + 2 * STEPS


def test_a_function_put_around_forward_is_called(pipe, timesteps):
    calls = []
    with cached(pipe, plan_of(timesteps)):
        expected, below = image(pipe), pipe.transformer.forward
        pipe.transformer.forward = lambda *a, **k: calls.append(1) or below(*a, **k)
        assert torch.equal(image(pipe), expected)
        assert torch.equal(image(pipe), expected)
    assert len(calls) == 2 * len(FULL)


@pytest.mark.parametrize("apply", [
    lambda t: apply_taylorseer_cache(t, TaylorSeerCacheConfig(max_order=1)),
    lambda t: apply_first_block_cache(t, FirstBlockCacheConfig(threshold=0.1)),
])  # fmt: skip
def test_a_cache_that_a_function_of_diffusers_applied_is_not_stacked(pipe, timesteps, apply):
    with cached(pipe, plan_of(timesteps)):
        image(pipe)
        apply(pipe.transformer)
        with pytest.raises(ValueError, match="two caches cannot be stacked"):
            image(pipe)
    with pytest.raises(ValueError, match="two caches cannot be stacked"):
        enable_cache(pipe, plan_of(timesteps))


# ---- Offloading


@every_tap
@pytest.mark.parametrize("first", ["offloading", "cache"])
def test_the_cache_and_offloading_go_together(pipe, timesteps, tap, first):
    """Diffusers puts its hooks on again after every image; a CPU takes the accelerator's place."""
    plain, plan = image(pipe), plan_of(timesteps, tap=tap)
    with cached(pipe, plan):
        expected = image(pipe)

    def offload():
        return cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))[1]

    hooks = [offload()] if first == "offloading" else []
    stats = enable_cache(pipe, plan)
    if first == "cache":
        hooks.append(offload())
    for _ in range(2):
        assert torch.equal(image(pipe), expected)
        hooks.pop().remove()
        hooks.append(offload())
    assert (stats.full, stats.skipped) == (2 * len(FULL), 2 * (STEPS - len(FULL)))
    disable_cache(pipe)
    assert torch.equal(image(pipe), plain)
    hooks.pop().remove()
    assert torch.equal(image(pipe), plain)
    assert getattr(pipe.transformer.forward, "__func__", None) is type(pipe.transformer).forward


@pytest.mark.parametrize("first", ["offloading", "cache"])
@pytest.mark.parametrize("of", ["block_level", "leaf_level"])
def test_the_cache_and_group_offloading_go_together(pipe, timesteps, of, first):
    plain, cpu = image(pipe), torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if of == "block_level" else {}

    def offload():
        pipe.transformer.enable_group_offload(cpu, cpu, offload_type=of, **blocks)

    with cached(pipe, plan_of(timesteps)):
        expected = image(pipe)
    if first == "offloading":
        offload()
    with cached(pipe, plan_of(timesteps)) as stats:
        if first == "cache":
            assert torch.equal(image(pipe), expected)
            offload()
        for _ in range(2):
            assert torch.equal(image(pipe), expected)
    assert stats.skipped == (STEPS - len(FULL)) * (3 if first == "cache" else 2)
    assert torch.equal(image(pipe), plain)


# ---- torch.compile, as people write it


def replaced(pipe):
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def in_place(pipe):
    pipe.transformer.compile(backend="eager")


def repeated(pipe):
    pipe.transformer.compile_repeated_blocks(backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("compile_it", [replaced, in_place, repeated])
def test_a_compiled_network_is_cached_at_the_output(pipe, timesteps, compile_it):
    torch._dynamo.reset()
    with cached(pipe, plan_of(timesteps)):
        expected = image(pipe), image(pipe, 1)
    compile_it(pipe)
    with cached(pipe, plan_of(timesteps)) as stats:
        for seed in (0, 1):
            torch.testing.assert_close(image(pipe, seed), expected[seed], rtol=1e-5, atol=1e-6)
    assert (stats.full, stats.skipped) == (2 * len(FULL), 2 * (STEPS - len(FULL)))
    image(pipe)
    torch._dynamo.reset()


@pytest.mark.parametrize("tap", INNER)
@pytest.mark.parametrize("compile_it", [replaced, in_place])
def test_at_an_inner_tap_the_line_to_write_is_told(pipe, timesteps, compile_it, tap):
    compile_it(pipe)
    with pytest.raises(ValueError, match=r"`block\.forward = torch\.compile\(block\.forward\)`"):
        enable_cache(pipe, plan_of(timesteps, tap=tap))
    torch._dynamo.reset()


# ---- What it counts


def test_seconds_are_those_of_the_steps(pipe, timesteps):
    with cached(pipe, plan_of(timesteps)) as stats:
        assert np.isnan(stats.loop_seconds) and np.isnan(stats.full_seconds)
        image(pipe)
        one = stats.loop_seconds
        assert 0 < stats.skipped_seconds < stats.full_seconds < one
        assert one >= 0.5 * (3 * stats.full_seconds + 5 * stats.skipped_seconds)
        assert 0 <= stats.since_loop() < 60
    with watched(pipe) as full:
        image(pipe)
        image(pipe)
    assert (full.full, full.skipped) == (2 * STEPS, 0)
    assert full.loop_seconds > 0


def test_what_is_encoded_between_images_counts_as_no_step(tiny_model):
    pipe = load_pipeline(tiny_model, "float32")
    with watched(pipe) as stats:
        for _ in range(2):
            pipe("a cat", num_inference_steps=3, height=16, width=16, max_sequence_length=24)
    assert (stats.full, stats.skipped) == (6, 0)


# ---- Schedulers of other kinds


class Keywords(FlowMatchEulerDiscreteScheduler):
    """A scheduler whose `step` has other names, and an argument more in between."""

    def step(self, velocity, t, x, extra=None, return_dict=True):
        return super().step(velocity, t, x, return_dict=return_dict)


def test_arguments_of_step_may_have_other_names(pipe, timesteps):
    with cached(pipe, plan_of(timesteps)):
        expected = image(pipe)
    pipe.scheduler = Keywords.from_config(pipe.scheduler.config)
    with cached(pipe, plan_of(timesteps)):
        assert torch.equal(image(pipe), expected)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_scheduler_may_be_stepped_by_keywords(by_keyword):
    """A sampler written by hand, on the driver of a pipeline whose networks it calls."""
    pipe = tiny_pipeline()
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    seen = []

    class Watching(Policy):
        def given(self, call):
            seen.append((call.index, float(call.timestep), call.sample.shape))
            call.output = torch.zeros_like(call.output)

    driver = Driver(pipe, Watching())
    driver.attach()
    pipe.scheduler.set_timesteps(4)
    x = torch.ones(1, 2)
    for t in pipe.scheduler.timesteps:
        given = {"model_output": torch.ones(1, 2), "timestep": t, "sample": x}
        noise = torch.Generator().manual_seed(0)
        if by_keyword:
            made = pipe.scheduler.step(**given, generator=noise)
        else:
            made = pipe.scheduler.step(*given.values(), generator=noise, return_dict=True)
        x = made.prev_sample
    driver.detach()
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert [t for _, t, _ in seen] == pipe.scheduler.timesteps.tolist()


def test_a_plan_with_weights_for_streams_it_does_not_have_leaves_nothing(pipe, timesteps):
    plain = image(pipe)
    plan = plan_of(timesteps, tap="modules")
    plan = Plan(plan.full, plan.weights[None], timesteps, "modules", ("attic",))
    with pytest.raises(PlanError, match="no weights for stream"):
        enable_cache(pipe, plan)
    with cached(pipe, plan_of(timesteps)):
        image(pipe)
    assert torch.equal(image(pipe), plain)
