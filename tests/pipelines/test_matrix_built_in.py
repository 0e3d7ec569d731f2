"""Every pipeline samples by a built-in plan, or is refused with a sentence that says why.

At a quality no built-in plan is needed, and every pipeline that makes pictures samples.
"""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch
from zoo import ZOO
from zoo.runs import check_same, kept

import eigencache
from eigencache.calibration.recording import outline
from eigencache.plan import PlanError, PlanWarning
from eigencache.runtime import _built_in
from eigencache.runtime._built_in import kind_of, levels_of
from eigencache.runtime._driver import DRIVER

NOISE, SCALED = "draws? new noise at every step", "outputs are scaled"
REFUSED = {
    "flux-sde": NOISE,
    "flux-stochastic": NOISE,
    "sdxl-ancestral": NOISE,
    "sd15-ancestral": NOISE,
    "sd15-lcm": NOISE,
    "latent-consistency": NOISE,
    "sana-sprint": NOISE,
    "hunyuan-dit": NOISE,
    "cogvideox-dpm": NOISE,
    "cosmos": SCALED,
    "cosmos-video-to-world": SCALED,
    "stable-audio": SCALED,
    "cosmos2": "do not fall from 1 towards 0",
}
OUT_OF_REACH = {"stable-audio": "neither images nor frames"}
QUICK = (
    "flux", "flux-dpm", "flux-inpaint", "sdxl-denoising-end", "sdxl-img2img", "sdxl-heun",
    "sd15-pndm", "sd3-heun", "wan22", "ltx2-one-pass", "z-image-cfg-truncated", "omnigen",
    "stable-video-diffusion", "flux-stochastic", "sd15-lcm", "cosmos", "cosmos2",
)  # fmt: skip
PROBED = ("flux", "sdxl-img2img", "sd15-pndm", "wan22", "ltx2-one-pass", "sd15-lcm", "cosmos2")
FULL = 4
# What tells that there is guidance differs from pipeline to pipeline.
GUIDANCE = {
    "flux": 3.5,  # an input of the network
    "flux-without-guidance": 1.0,  # a scale of 3.5 that does nothing
    "flux-true-cfg": 3.5,  # two passes, and the input
    "qwen": 1.0,  # a scale of 4 that does nothing without a negative prompt
    "qwen-true-cfg": 3.0,
    "sdxl": 5.0,  # a batch of two
    "sdxl-without-cfg": 1.0,
    "sd3-without-cfg": 1.0,
    "dit": 4.0,  # the scheduler's latents are doubled, too
    "z-image": 5.0,  # a list of two
    "z-image-turbo": 1.0,
    "stable-video-diffusion": 3.0,  # one scale for each frame
    "hunyuan-image-distilled": 3.25,
    "hunyuan-video-15": 3.0,  # a guider
    "flux2-klein-kv": 1.0,
    "ltx2": 7.0,  # that of sound is larger
    "ltx2-one-pass": 1.0,
}


def every(quick):
    """Take all configurations, and only these in the fast part."""
    names = [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in ZOO]
    return pytest.mark.parametrize("measured", names, indirect=True)


@every(QUICK)
def test_it_samples_or_says_why_not(measured):
    case, run, before = measured.case, measured.plain, kept(measured.case)
    timesteps, switches, told = outline(case.pipe, case.shared() | case.prompt(1))
    assert np.array_equal(timesteps, run.timesteps) and {*run.switches} <= {*switches}
    assert kept(case) == before
    assert told == GUIDANCE.get(case.name, told)
    if why := REFUSED.get(case.name):
        with (
            pytest.raises(PlanError, match=f"no built-in plan for .*{why}"),
            eigencache.cached(case.pipe, full_steps=FULL),
        ):
            case(0)
        assert kept(case) == before
        return
    with eigencache.cached(case.pipe, full_steps=FULL) as stats:
        first = case(0)
        more = stats.full - FULL  # where networks begin to be called otherwise
        assert more in (0, 1)  # 1 if that step is beyond the plan's last full one
        assert stats.full + stats.skipped == len(run)
        case(1)
        check_same(case(0), first)
        assert stats.full == 3 * (FULL + more)
        assert stats.plan.full.sum() == FULL
        assert np.array_equal(stats.plan.timesteps, run.timesteps)
    assert all(torch.isfinite(part.float()).all() for part in first)
    assert kept(case) == before


@every(PROBED)
def test_it_samples_at_a_quality_or_says_why_not(measured, caplog):
    """The first call makes the plan, and gives the image that this plan gives."""
    case, before, kind = measured.case, kept(measured.case), type(measured.case.pipe)
    try:
        with eigencache.cached(case.pipe, psnr=20) as stats:
            assert isinstance(case.pipe, kind) and type(case.pipe).__name__ == kind.__name__
            first = case(0)
            assert type(case.pipe) is kind
            plan, computed = stats.plan, stats.full
            assert stats.predicted_psnr >= 20 and "predicted PSNR" in str(stats)
            case(1)
    except ValueError as error:
        assert case.name in OUT_OF_REACH, error
        assert OUT_OF_REACH[case.name] in str(error)
    else:
        (said,) = [r.getMessage() for r in caplog.records if r.name == "eigencache"]
        assert said.startswith("psnr=20: ")
        with eigencache.cached(case.pipe, plan) as stats:
            check_same(case(0), first)
            assert stats.full == computed
    assert type(case.pipe) is kind and kept(case) == before


@pytest.mark.parametrize("name", ["flux", "flux-unipc", "sd3-heun"])
def test_with_every_step_full_nothing_changes(name):
    case = ZOO[name]()
    plain = case(0)
    with eigencache.cached(case.pipe, full_steps=1000) as stats:
        with pytest.warns(PlanWarning, match="1000 steps were to be computed in full"):
            check_same(case(0), plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it was said
            check_same(case(0), plain)
        assert stats.skipped == 0


def test_a_budget_so_small_that_plans_may_do_harm_is_told_once():
    case = ZOO["flux"]()
    with eigencache.cached(case.pipe, full_steps=2):
        with pytest.warns(PlanWarning, match="2 of 30 steps in full.* worse .* Take 4 or more"):
            case(0, num_inference_steps=30)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case(0, num_inference_steps=30)


def test_one_cache_serves_any_number_of_steps():
    case = ZOO["flux"]()
    with eigencache.cached(case.pipe, speedup=2) as stats:
        for steps, full in ((10, 5), (20, 10), (7, 3), (10, 5)):
            before = stats.full
            case(0, num_inference_steps=steps)
            assert (stats.full - before, len(stats.plan)) == (full, steps)
            assert f"built-in plan: {full} of {steps} steps in full, for flow" in str(stats)


def test_noise_levels_are_those_of_the_scheduler():
    """A sample with noise added by the scheduler has the level that is told."""
    for name in ("flux", "sdxl", "sdxl-ddim", "sd15-dpm", "flux-dpm"):
        case = ZOO[name]()
        case(0)
        scheduler = case.pipe.scheduler
        timesteps = scheduler.timesteps
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = scheduler._begin_index = None  # the run is over
        levels = levels_of(scheduler, timesteps.double().numpy())
        assert len(levels) == len(timesteps) + 1 and levels[-1] == 0
        for i in (0, len(timesteps) // 2):
            add = getattr(scheduler, "add_noise", None) or scheduler.scale_noise
            share = []
            for clean, noise in ((1.0, 0.0), (0.0, 1.0)):
                parts = torch.full((1, 1), clean), torch.full((1, 1), noise)
                if hasattr(scheduler, "add_noise"):
                    share.append(float(add(*parts, timesteps[i : i + 1])))
                else:
                    share.append(float(add(parts[0], timesteps[i : i + 1], parts[1])))
            assert levels[i] == pytest.approx(share[1] / sum(share), abs=1e-4), name


def test_a_server_of_many_scales_keeps_few_designs(monkeypatch):
    monkeypatch.setattr(_built_in, "MOST", 3)
    case = ZOO["flux"]()
    with eigencache.cached(case.pipe, full_steps=3) as stats:
        made = [case(0, guidance_scale=1.5 + i / 4) for i in range(5)]
        policy = case.pipe.__dict__[DRIVER].policy
        assert len(policy.designs) == 3
        check_same(case(0, guidance_scale=1.5), made[0])
        assert stats.full == 6 * 3


def test_each_size_of_image_is_told_what_is_wrong_with_it():
    case = ZOO["flux"]()
    with eigencache.cached(case.pipe, full_steps=2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case(0, num_inference_steps=10)
        with pytest.warns(PlanWarning, match="2 of 30 steps in full.* worse"):
            case(0, num_inference_steps=30)
        with pytest.warns(PlanWarning, match="2 steps were to be computed in full"):
            case(0, num_inference_steps=2)


@pytest.mark.parametrize("name", ["qwen", "flux-without-guidance", "sd3-without-cfg"])
def test_two_images_of_the_same_noise_are_not_taken_for_guidance(name):
    case = ZOO[name]()
    one, other = case.arguments(0), case.arguments(1)
    both = {
        key: torch.cat([value, other[key]]) if key.endswith(("embeds", "mask")) else value
        for key, value in one.items()
    }
    with eigencache.cached(case.pipe, full_steps=FULL) as stats:
        case.pipe(**both | {"generator": [torch.Generator().manual_seed(0) for _ in range(2)]})
        assert stats.plan.source["built in"].endswith("guidance 1")


@pytest.mark.filterwarnings("ignore")  # of schedulers as they are made by default
def test_no_scheduler_that_draws_noise_has_built_in_plans():
    """Whatever diffusers has; with two seeds, all steps end in the same latents."""
    names = [n for n in dir(diffusers) if n.endswith("Scheduler") and n[0] != "_"]
    checked = []
    for name in names:
        try:
            kind = getattr(diffusers, name)
            scheduler = kind()
            kind_of(scheduler)
        except (ImportError, TypeError, PlanError):  # it needs what is not here, or is refused
            continue
        if "Helios" in name:  # it steps through stages, by what its pipeline says of them
            continue
        ends = [_stepped(kind(), seed) for seed in (0, 1)]
        assert torch.equal(*ends), name
        checked.append(name)
    assert len(checked) > 12 and "SASolverScheduler" not in checked


def _stepped(scheduler, seed):
    more = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(12, **more)
    names = inspect.signature(scheduler.step).parameters
    noise = torch.Generator().manual_seed(seed)
    given = {"generator": noise} if "generator" in names else {}
    x = torch.ones(1, 3, 4, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(x / 2, t, x, return_dict=False, **given)[0]
    return x


def test_guidance_that_is_truncated_moves_a_full_step():
    """Lumina 2 calls its network once instead of twice from a step on that the plan skips."""
    case = ZOO["lumina2-cfg-truncated"]()
    _, (switch,), _ = outline(case.pipe, case.shared() | case.prompt(1))
    steps, child = set(), next(case.pipe.transformer.children())
    with eigencache.cached(case.pipe, full_steps=3) as stats:
        child.register_forward_pre_hook(lambda *_: steps.add(case.pipe.scheduler.step_index or 0))
        case(0)
    assert switch not in steps and switch + 1 in steps
    assert len(steps) == stats.full == 3


def test_networks_without_a_scheduler_are_refused():
    case = ZOO["flux"]()
    with (
        pytest.raises(ValueError, match="bare network"),
        eigencache.cached(case.pipe.transformer, full_steps=4),
    ):
        pass


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({}, "just one of"),
        ({"full_steps": 4, "speedup": 2}, "just one of"),
        ({"full_steps": 4, "psnr": 30}, "just one of"),
        ({"psnr": -1}, "psnr must be"),
        ({"full_steps": 0}, "full_steps must be"),
        ({"speedup": 0}, "speedup must be"),
    ],
)
def test_what_is_stated_must_make_sense(stated, says):
    case = ZOO["flux"]()
    with pytest.raises(ValueError, match=says), eigencache.cached(case.pipe, **stated):
        pass


@pytest.mark.parametrize("more", [{"full_steps": 2}, {"speedup": 2}, {"psnr": 30}])
def test_a_plan_and_a_budget_are_one_too_many(more):
    case = ZOO["flux"]()
    plan = eigencache.Plan(np.ones(3, bool), np.zeros((3, 3)), np.arange(3.0), "output")
    with pytest.raises(ValueError, match="not both"), eigencache.cached(case.pipe, plan, **more):
        pass
