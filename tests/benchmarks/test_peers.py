"""The comparison with peers that run from their own code (`benchmarks/peers`)."""

import contextlib
from functools import partial
from math import factorial

import pytest
import torch
from helpers import tiny_pipeline

from benchmarks.peers import diffusers_hooks, solvers
from benchmarks.peers.compare import compare, counted, footprint, sampled, search
from benchmarks.peers.contestant import Contestant, Study
from eigencache.methods import make_plan
from eigencache.predictors import Taylor
from eigencache.runtime import cached
from eigencache.schedules import Interval, Steps

pytestmark = pytest.mark.slow

STEPS = 10
SETTINGS = {"num_inference_steps": STEPS, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def cases():
    draw = torch.Generator().manual_seed(0)
    return [
        (
            {
                "prompt_embeds": torch.randn(1, 3, 12, generator=draw),
                "pooled_prompt_embeds": torch.randn(1, 10, generator=draw),
            },
            seed,
        )
        for seed in range(3)
    ]


def contestants(pipe, cases):
    calibrate = partial(sampled, cases=cases, arguments=SETTINGS)
    made = diffusers_hooks.contestants(Study(STEPS, None, calibrate, len(cases)))
    return {contestant.method: contestant for contestant in made}


def test_rows_of_the_table(pipe, cases):
    euler = solvers.contestants(Study(STEPS, None, None))[0]
    taylorseer = contestants(pipe, cases)["TaylorSeer-1 lite"]
    rows = list(compare(pipe, [euler, taylorseer], [5, 7], cases, cases[:1], SETTINGS, timed=1))
    assert [row["full_steps"] for row in rows] == [5, 7, 5, 7]
    assert all(row["psnr_float"] > 0 and row["ssim"] < 1 for row in rows)
    assert rows[0]["compute"] == pytest.approx(0.5)
    assert rows[0]["cache_memory_mb"] <= 0 < rows[2]["cache_memory_mb"]
    assert all(row["seconds"] > 0 and row["speedup"] > 0 for row in rows)
    assert all(row["peak_memory_mb"] > row["cache_memory_mb"] for row in rows)
    assert rows[2]["setting"] == "cache_interval=3 disable_cache_before_step=3"


def test_images_of_a_batch_are_those_of_one_by_one(pipe, cases):
    together, _ = sampled(pipe, cases, SETTINGS)
    alone = [sampled(pipe, [case], SETTINGS)[0] for case in cases]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", diffusers_hooks.TAYLORSEER)
@pytest.mark.parametrize("budget", [4, 7])
def test_taylorseer_computes_the_steps_that_it_was_set_to(pipe, cases, method, budget):
    contestant = contestants(pipe, cases)[method]
    setting = contestant.setting(budget)
    steps = diffusers_hooks.taylorseer_steps(STEPS, **setting)
    assert sampled(pipe, cases[:1], SETTINGS, contestant, **setting)[1] == len(steps) == budget


@pytest.mark.parametrize("method", ["PAB", "FasterCache"])
def test_attention_caches_compute_their_share(pipe, cases, method):
    contestant = contestants(pipe, cases)[method]
    taken = footprint(pipe, cases[0], SETTINGS, contestant, **contestant.setting(5))
    full = footprint(pipe, cases[0], SETTINGS)
    assert sampled(pipe, cases, SETTINGS, contestant, **contestant.setting(5))[1] == 5
    assert 0.5 < taken.operations / full.operations < 1  # the MLPs are computed at every step


@pytest.mark.parametrize("method", ["FirstBlockCache", "MagCache", "SeaCache"])
def test_a_threshold_trades_full_steps(pipe, cases, method):
    contestant = contestants(pipe, cases)[method]
    found = [
        sampled(pipe, cases[:1], SETTINGS, contestant, threshold=threshold)[1]
        for threshold in contestant.thresholds
    ]
    assert STEPS >= found[0] > found[1] >= 1


def test_seacache_is_given_latents_in_their_own_shape(pipe, cases):
    inputs = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs), with_kwargs=True
    )
    sampled(pipe, cases, SETTINGS | {"height": 24})
    hook.remove()
    found = diffusers_hooks.unpacked(pipe.transformer, (), inputs[0])
    packed = inputs[0]["hidden_states"]
    latents = pipe._unpack_latents(packed, 24, 16, pipe.vae_scale_factor)
    assert torch.equal(torch.stack(found), latents.reshape(len(cases), -1, 1, *latents.shape[-2:]))


def test_magcache_is_calibrated_by_its_own_mode(pipe, cases):
    calibrate = partial(sampled, cases=cases, arguments=SETTINGS)
    ratios = diffusers_hooks.mag_ratios(pipe, STEPS, calibrate)
    assert len(ratios) == STEPS and ratios[0] == 1 and min(ratios) > 0


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("options", "tap"),
    [(diffusers_hooks.MODULES, "modules"), ({"use_lite_mode": True}, "output")],
)
def test_our_taylorseer_agrees_with_that_of_diffusers(pipe, cases, options, tap, order):
    options = options | diffusers_hooks.FLOAT32 | {"max_order": order}
    setting = {"cache_interval": 3, "disable_cache_before_step": 3}
    peer = Contestant("theirs", "", partial(diffusers_hooks.taylorseer, options), None)
    theirs, _ = sampled(pipe, cases, SETTINGS, peer, **setting)
    full, _ = sampled(pipe, cases, SETTINGS)
    schedule = Steps(diffusers_hooks.taylorseer_steps(STEPS, **setting))
    plan = make_plan(schedule, Taylor(order=order), pipe.scheduler.timesteps, tap=tap)
    mine = Contestant("ours", "", lambda pipe: applied(pipe, plan), None)
    images, full_steps = sampled(pipe, cases, SETTINGS, mine)
    assert full_steps == sum(plan.full)
    assert (images - theirs).abs().max() < 1e-3 * (full - theirs).abs().max()


@contextlib.contextmanager
def applied(pipe, plan):
    with cached(pipe, plan):
        yield None


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("budget", [1, 5, 6])
def test_solvers_end_at_zero_after_their_evaluations(pipe, cases, solver, budget):
    own = pipe.scheduler
    setting = solvers.setting(solver, STEPS, budget)
    with solvers.applied(solver, pipe, **setting) as steps, counted(pipe.transformer) as calls:
        pipe(**cases[0][0], num_inference_steps=steps, height=16, width=16, output_type="latent")
        sigmas = pipe.scheduler.sigmas
    assert pipe.scheduler is own
    assert len(calls) == budget + (solver == "Heun" and budget % 2 == 0)
    assert sigmas[0] == pytest.approx(1, abs=1e-3) and sigmas[-1] == 0
    assert (sigmas.diff() <= 0).all()


def test_the_full_run_itself_is_only_asked_of_the_most_exact_solver():
    asked = [solver for solver in solvers.SOLVERS if solvers.setting(solver, STEPS, STEPS)]
    assert asked == ["DPM-Solver++ 3M"]


def test_heun_is_on_the_grid_of_euler(pipe, cases):
    grids = {}
    for solver in ("Euler", "Heun"):
        with solvers.applied(solver, pipe, 4):
            pipe(**cases[0][0], num_inference_steps=4, height=16, width=16, output_type="latent")
            grids[solver] = pipe.scheduler.sigmas.unique()
    torch.testing.assert_close(grids["Euler"], grids["Heun"])


def test_search_finds_the_nearest_threshold():
    tried = {}

    def full_steps(threshold):
        return 3 + round(47 * (1 - threshold))

    for budget in (7, 9, 18):
        assert full_steps(search(full_steps, budget, (1e-3, 1.0), tried)) == budget
    asked = len(tried)
    search(full_steps, 9, (1e-3, 1.0), tried)
    assert len(tried) == asked  # what is known is not asked again


def test_what_a_row_cost_to_fit(pipe, cases):
    """A threshold costs what its search computes, a calibrated one its calibration besides."""
    peers = contestants(pipe, cases)
    chosen = [peers["PAB"], peers["MagCache"]]
    pab, magcache = compare(pipe, chosen, [5], cases, cases[:2], SETTINGS, 1)
    assert (pab["fit_calls"], pab["fit_prompts"]) == (0, 0)
    assert magcache["fit_calls"] > 3 * STEPS and magcache["fit_prompts"] == 3
    known = {("PAB", 5), ("MagCache", 5)}
    assert not [*compare(pipe, chosen, [5], cases, [], SETTINGS, 1, known)]


def cache_dit():
    pytest.importorskip("cache_dit", reason="cache-dit has an environment of its own")
    from benchmarks.peers import cache_dit

    return cache_dit


def test_cache_dit_agrees_with_first_block_cache(pipe, cases, monkeypatch):
    peer = cache_dit()
    monkeypatch.setitem(peer.BASE, "max_warmup_steps", 0)  # FirstBlockCache has no warm-up
    both = contestants(pipe, cases) | {c.method: c for c in peer.contestants(Study(STEPS, 0, 0))}
    images, full_steps = zip(
        *(
            sampled(pipe, cases, SETTINGS, both[method], threshold=0.5)
            for method in ("FirstBlockCache", "DBCache")
        ),
        strict=True,
    )
    assert full_steps[0] == full_steps[1] < STEPS
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


def test_cache_dit_computes_the_steps_of_its_mask(pipe, cases):
    peer = cache_dit()
    before, _ = sampled(pipe, cases, SETTINGS)
    for contestant in peer.contestants(Study(STEPS, 0, 0)):
        if not contestant.thresholds and (setting := contestant.setting(5)):
            full_steps = 5
            if policy := setting.get("policy"):  # one of its own masks, a step off at most
                mask = peer.cache_dit.steps_mask(total_steps=STEPS, mask_policy=policy)
                full_steps = sum(mask)
            assert sampled(pipe, cases, SETTINGS, contestant, **setting)[1] == full_steps
    after, full_steps = sampled(pipe, cases, SETTINGS)
    assert full_steps == STEPS and torch.equal(before, after)


@contextlib.contextmanager
def residual_taylor(pipe, full, order):
    """What cache-dit's TaylorSeer is, as README.md says it: differences begin at step 3."""
    transformer = pipe.transformer
    head, *middle, tail = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    forwards = {block: block.forward for block in (head, *middle, tail)}
    step, anchor, ladder, first = -1, None, [], None

    def run_head(**inputs):
        nonlocal step, first
        step, first = step + 1, forwards[head](**inputs)
        return first

    def run_middle(block, **inputs):
        if step in full:
            return forwards[block](**inputs)
        return inputs["encoder_hidden_states"], inputs["hidden_states"]

    def run_tail(**inputs):
        nonlocal anchor, ladder
        if step in full:
            output = forwards[tail](**inputs)
            new = [tuple(a - b for a, b in zip(output, first, strict=True))]
            for old in ladder[:order] if step > 2 else ():
                pairs = zip(new[-1], old, strict=True)
                new.append(tuple((a - b) / (step - anchor) for a, b in pairs))
            anchor, ladder = step, new
            return output
        terms = [(step - anchor) ** k / factorial(k) for k in range(len(ladder))]
        forecast = [
            sum(term * part[i] for term, part in zip(terms, ladder, strict=True)) for i in (0, 1)
        ]
        return tuple(a + b for a, b in zip(first, forecast, strict=True))

    head.forward, tail.forward = run_head, run_tail
    for block in middle:
        block.forward = partial(run_middle, block)
    try:
        yield None
    finally:
        for block, forward in forwards.items():
            block.forward = forward


@pytest.mark.parametrize("order", [1, 2])
def test_what_taylorseer_of_cache_dit_is(pipe, cases, order):
    peer = cache_dit()
    theirs = {c.method: c for c in peer.contestants(Study(STEPS, 0, 0))}
    images, _ = sampled(
        pipe, cases[:1], SETTINGS, theirs[f"interval + TaylorSeer-{order}"], every=3
    )
    full = Interval(every=3).full(range(STEPS), None).nonzero()[0]
    mine = Contestant("", "", lambda pipe: residual_taylor(pipe, full, order), None)
    same, full_steps = sampled(pipe, cases[:1], SETTINGS, mine)
    assert full_steps == len(full)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-6)
