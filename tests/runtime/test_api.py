"""The package from Python: a plan from a pipeline, the cache on it, and what that says it saved."""

import ast
import contextlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from fields import FieldPipeline, field_pipeline
from helpers import arguments_of, flow_timesteps, sampling, tiny_flux, tiny_pipeline
from torch import nn

import eigencache
from eigencache.calibration import Calibration, ClosedLoopMaker, calibrate
from eigencache.calibration.quality import Judge
from eigencache.calibration.recording import record_kernels
from eigencache.calibration.sampler import check_arguments, image_seed, load_pipeline
from eigencache.commands.prompts import read_prompts
from eigencache.kernel import Kernel, Kind
from eigencache.methods import METHODS, make_plan
from eigencache.plan import Plan, PlanError, PlanWarning
from eigencache.predictors import Taylor
from eigencache.runtime import cached, disable_cache, enable_cache, stats
from eigencache.runtime.stats import KEPT, CacheStats
from eigencache.schedules import Steps

ROOT = Path(__file__).parents[2]
PACKAGE = Path(eigencache.__file__).parent
# Of the trained model, and of the tiny random one, whose prompts are the arguments of each call.
PROMPTS = read_prompts(ROOT / "data/prompts/emoji-calibration.txt", 4)
CALLS = [arguments_of(i) for i in range(4)]
SMALL = {"num_inference_steps": 8, "height": 16, "width": 16}
TRAINED = {"height": 64, "width": 64, "max_sequence_length": 24}
TIMESTEPS = flow_timesteps(6)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def trained():
    return load_pipeline(ROOT / "data/emoji-flux", "float32")


def plan_of(timesteps=TIMESTEPS, **source):
    return make_plan(Steps([0, 1, 3]), Taylor(1), timesteps, tap="output")


@pytest.mark.slow
def test_a_saved_plan_says_what_it_saves(trained, tmp_path):
    """The README's own lines run in `end_to_end/test_documents.py`."""
    arguments = TRAINED | {"num_inference_steps": 50}
    calibrate(trained, PROMPTS[:1], 9, **arguments).save(tmp_path / "plan.safetensors")
    with cached(trained, eigencache.load_plan(tmp_path / "plan.safetensors")) as told:
        image = trained("a red apple on a blue background", **arguments).images[0]
    said = str(told)
    assert said.startswith("9 steps in full, 41 skipped; ")
    assert " s saved (a full step takes " in said and "predicted error of latents 0." in said
    assert image.size == (64, 64)
    assert 0 < told.skipped_seconds < 0.1 * told.full_seconds


def test_importing_needs_no_torch_and_loading_a_plan_neither(tmp_path):
    plan_of().save(tmp_path / "plan.safetensors")
    code = (
        "import sys, eigencache; eigencache.load_plan(sys.argv[1]); "
        "print({'torch', 'diffusers', 'pandas', 'snakemake'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plan.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_package_does_not_import_snakemake():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "snakemake" for name in names), path


def test_every_public_name_is_where_type_checkers_are_told():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module.startswith("eigencache.")
        and node.module != "eigencache._lazy"
        for alias in node.names
    }
    homes = {(f"eigencache.{home}", name) for name, home in eigencache._HOMES.items()}
    assert told == homes
    assert all(getattr(eigencache, name) is not None for name in eigencache.__all__)


# ---- Calibrating


def test_a_calibrated_plan_is_that_of_its_kernel(pipe):
    calls = [call | SMALL for call in CALLS[:2]]
    kind = Kind.of("output.full.second-moment")
    (kernel,) = record_kernels(pipe, calls, [image_seed(5, i) for i in range(2)], [kind])
    expected = METHODS["EigenCache-design"].plan(4, kernel.timesteps, kernel, window=3)
    plan = calibrate(pipe, CALLS[:2], 4, seed=5, options={"window": 3}, **SMALL)
    assert np.array_equal(plan.full, expected.full)
    assert np.allclose(plan.weights, expected.weights, atol=1e-4)  # of a batch of two
    assert plan.predicted_error == pytest.approx(expected.predicted_error, rel=1e-3)
    # Which are the pipeline's defaults.
    assert plan.arguments == SMALL | {"guidance_scale": 3.5, "true_cfg_scale": 1.0}
    assert plan.scheduler == "FlowMatchEulerDiscreteScheduler"
    assert (plan.pipeline, plan.method) == ("FluxPipeline", "EigenCache-design")


def test_calibrating_leaves_the_pipeline_as_it_was(pipe):
    before = dict(pipe._progress_bar_config), id(pipe.scheduler)
    calibrate(pipe, CALLS[:1], 3, method="FORA", **SMALL)
    assert (dict(pipe._progress_bar_config), id(pipe.scheduler)) == before
    hooked = [m for m in pipe.transformer.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert not hooked and "forward" not in vars(pipe.transformer)


def test_a_formula_takes_one_run_and_its_own_tap():
    pipe = field_pipeline()
    plan = calibrate(
        pipe, ["a", "b", "c"], 5, method="TaylorSeer", tap="output", options={"order": 2},
        num_inference_steps=8,
    )  # fmt: skip
    # One prompt, one step after the other; then how outputs answer errors, with 2 of 8 steps.
    assert pipe.transformer.calls == [1] * (8 + 2 * 2)
    assert (plan.tap, plan.source["predictor"]) == ("output", str(Taylor(2)))
    assert METHODS["TaylorSeer"].tap == "modules"


def test_a_quality_takes_as_few_steps_as_are_predicted_to_give_it(pipe):
    plan = calibrate(pipe, CALLS, psnr=50, **SMALL)
    assert plan.predicted_psnr >= 50
    assert 2 < len(plan.full_steps) < 8
    less = calibrate(pipe, CALLS, len(plan.full_steps) - 1, **SMALL)
    held_out = [image_seed(7, i) for i in (2, 3)]
    assert Judge(pipe, [SMALL | call for call in CALLS[2:]], held_out).psnr(less) < 50
    with cached(pipe, plan) as told:
        pass
    assert told.predicted_psnr == plan.predicted_psnr


@pytest.mark.parametrize(
    ("method", "options", "wanted"),
    [("TaylorSeer", {"order": 1}, 45), ("HiCache", {"order": 2}, 48), ("L2P", {}, 30)],
)
def test_a_quality_is_had_at_an_interval_too(pipe, method, options, wanted):
    """It is the cheapest good one of those that the interval can give."""
    arguments = {"method": method, "options": options, "tap": "output", **SMALL}
    plan = calibrate(pipe, CALLS, psnr=wanted, **arguments)
    budgets = METHODS[method].budgets(8, **options)
    assert budgets == [3, 4, 5]  # and 8, which skips no step
    count = len(plan.full_steps)
    assert count in budgets and plan.predicted_psnr >= wanted
    if count > budgets[0]:
        less = calibrate(pipe, CALLS, budgets[budgets.index(count) - 1], **arguments)
        seeds = [image_seed(7, i) for i in range(len(CALLS))]
        judge = Judge(pipe, [SMALL | call for call in CALLS], seeds)
        assert judge.psnr(less) < wanted


def test_a_formula_is_judged_by_all_prompts(pipe):
    """It is not fitted on any, so one is enough."""
    plan = calibrate(pipe, CALLS[:1], psnr=45, method="TaylorSeer", tap="output", **SMALL)
    judge = Judge(pipe, [SMALL | CALLS[0]], [image_seed(7, 0)])
    assert plan.predicted_psnr == judge.psnr(plan)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["FORA", "EigenCache-design", "EigenCache"])
def test_a_quality_out_of_reach_is_an_error(pipe, method):
    few = SMALL | {"num_inference_steps": 4}
    options = {"rounds": 1, "held_out": 1} if method == "EigenCache" else {}
    with pytest.raises(ValueError, match=r"psnr: 99 dB is out of reach: \d full steps are"):
        calibrate(pipe, CALLS[:2], psnr=99, method=method, options=options, **few)
    with pytest.raises(ValueError, match="so few sampler steps"):
        calibrate(pipe, CALLS[:2], psnr=9, method="FORA", **few | {"num_inference_steps": 2})


@pytest.mark.slow
def test_the_closed_loop_predicts_psnr_and_not_the_open_loop_s_error(pipe):
    plan = calibrate(pipe, CALLS, 4, method="EigenCache", options={"held_out": 2}, **SMALL)
    held_out = [image_seed(7, i) for i in (2, 3)]
    judged = Judge(pipe, [SMALL | call for call in CALLS[2:]], held_out).psnr(plan)
    assert len(plan.full_steps) == 4 and plan.predicted_psnr == pytest.approx(judged)
    assert "in closed loop" in plan.source["closed loop"]
    assert np.isnan(plan.predicted_error) and plan.method == "EigenCache"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told", "runs"),
    [
        ({}, "full second-moment", 2),
        ({"runs": 1}, "full second-moment", 1),
        ({"features": "stride-8"}, "stride-8 second-moment", 2),
        ({"features": "token-mean", "normalisation": "cosine", "runs": 1}, "token-mean cosine", 1),
    ],
    ids=str,
)
def test_the_closed_loop_makes_the_kernel_that_its_options_ask_for(pipe, options, told, runs):
    """Of the prompts that it is fitted on alone."""
    calls = [call | SMALL for call in CALLS[:runs]]
    kind = METHODS["EigenCache"].kind(**options)
    quick = options | {"sweeps": 0, "rounds": 0}
    maker = ClosedLoopMaker(Calibration(pipe, CALLS, SMALL, 7), METHODS["EigenCache"], quick)
    seeds = [image_seed(7, i) for i in range(runs)]
    (expected,) = record_kernels(pipe, calls, seeds, [kind])
    np.testing.assert_allclose(maker.kernel.matrix(), expected.matrix(), rtol=1e-3, atol=1e-4)
    assert maker.plan(4).source["kernel"] == f"{told}, {runs} runs"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_plan_that_samples(method):
    """On a tiny FLUX, whose prompts are the arguments of each call."""
    pipe, calls = tiny_pipeline(), [arguments_of(i) for i in range(2)]
    shared = {"num_inference_steps": 6, "height": 16, "width": 16}
    plan = calibrate(pipe, calls, 3, method=method, **shared)
    assert (plan.tap, plan.method, len(plan)) == (METHODS[method].tap, method, 6)
    assert len(plan.full_steps) == 3 or METHODS[method].schedule.__name__ == "Interval"
    with warnings.catch_warnings(), cached(pipe, plan) as told:
        warnings.simplefilter("error")
        noise = torch.Generator().manual_seed(0)
        image = pipe(**calls[0], **shared, generator=noise, output_type="latent").images
    assert image.isfinite().all()
    assert (told.full, told.skipped) == (len(plan.full_steps), 6 - len(plan.full_steps))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_prompts_are_shared_between_fit_and_judge(count):
    pipe = field_pipeline()
    plan = calibrate(
        pipe, [f"prompt {i}" for i in range(count)], 3, method="EigenCache", num_inference_steps=6
    )
    fitted = count - count // 2
    assert plan.source["kernel"] == f"full second-moment, {fitted} runs"


def test_prompts_may_be_the_arguments_of_each_call():
    pipe = field_pipeline()
    texts, dicts = (
        calibrate(pipe, prompts, 3, num_inference_steps=6)
        for prompts in (["a", "b"], [{"prompt": "a"}, {"prompt": "b", "passes": 1}])
    )
    assert np.array_equal(texts.full, dicts.full)
    assert np.allclose(texts.weights, dicts.weights, atol=1e-5)


def test_a_plan_is_the_same_twice(pipe):
    """That of the closed loop too: `test_fitting.py`."""
    one, two = (calibrate(pipe, CALLS[:2], 3, **SMALL) for _ in range(2))
    assert one.digest == two.digest


@pytest.mark.slow
def test_a_kernel_of_50_steps_designs_for_28(trained):
    """Read at other timesteps, a kernel of the trained model is near one calibrated there."""
    kernels = {}
    for steps in (50, 28):
        arguments = TRAINED | {"num_inference_steps": steps}
        calibration = Calibration(trained, [{"prompt": p} for p in PROMPTS[:2]], arguments, 7)
        kernels[steps] = calibration.kernel(Kind.of("output.full.second-moment"))
    read, own = kernels[50].at(kernels[28].timesteps), kernels[28]
    away = np.abs(read.matrix() - own.matrix()).max() / np.abs(own.matrix()).max()
    assert away < 0.05
    assert np.allclose(read.step_sizes, own.step_sizes, rtol=1e-3, atol=1e-6)
    assert isinstance(read, Kernel) and np.linalg.eigvalsh(read.matrix()).min() > -1e-9
    plan = METHODS["EigenCache-design"].plan(7, own.timesteps, kernels[50])
    with cached(trained, plan) as told:
        trained(PROMPTS[0], **TRAINED | {"num_inference_steps": 28})
    assert told.skipped == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "EigenCash"}, "no method 'EigenCash'.*there are FORA, "),
        ({"full_steps": None}, "state either full_steps"),
        ({"psnr": 50}, "state either full_steps"),
        ({"full_steps": 0}, "full_steps must be a whole number of at least 1, got 0"),
        ({"full_steps": None, "psnr": -1}, "psnr must be a finite number"),
        ({"full_steps": None, "psnr": 50, "prompts": ["a"]}, "state two prompts or more"),
        ({"options": {"order": 2}}, r"unknown options \['order'\]"),
        ({"window": 3}, r"window is an option of EigenCache-design: state options=\{'window': 3\}"),
        ({"options": {"jitter": -1}}, "jitter must be"),
        ({"method": "EigenCache", "prompts": ["a"]}, "at least two calibration prompts"),
        ({"method": "EigenCache", "options": {"held_out": 4}}, "when 4 are held out"),
        ({"method": "EigenCache", "options": {"runs": 3}}, "runs=3: there are only 2 prompts"),
        ({"options": {"runs": 5}}, "runs=5: there are only 4 prompts"),
        ({"method": "EigenCache", "tap": "modules"}, "this method works at 'output'"),
        ({"prompts": "a cat"}, "must be a list, got a single one"),
        ({"prompts": {"prompt": "a"}}, "must be a list, got a single one"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", " "]}, r"prompts\[1\] must be a text"),
        ({"prompts": ["a", {}]}, r"prompts\[1\] must be a text or the arguments"),
        ({"prompts": [{"prompt": "a", "hieght": 64}]}, "no argument 'hieght'; did you mean 'heig"),
        ({"tap": "outputs"}, "tap: there is no 'outputs'; there are output, hidden"),
        ({"full_steps": 4.0}, r"full_steps must be a whole number of at least 1, got 4\.0"),
        ({"full_steps": 9}, "full_steps must lie between 1 and 8, got 9"),
        ({"prompt": "a dog"}, "prompt: every call states its own"),
        ({"callback_on_step_end": print}, "callback_on_step_end: calibration does not take one"),
        ({"guidance": 3}, "FluxPipeline takes no argument 'guidance'"),
        ({"order": 2}, "FluxPipeline takes no argument 'order'"),
        ({"generator": None}, "generator: EigenCache sets it itself"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt: a plan serves any number"),
        ({"pipe": nn.Linear(1, 1)}, "Linear is not a diffusers pipeline"),
        ({"pipe": "models/emoji-flux"}, "str is not a diffusers pipeline"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_any_run(arguments, message):
    arguments = {"pipe": tiny_pipeline(), "prompts": PROMPTS, "full_steps": 4} | arguments
    with pytest.raises(ValueError, match=message):
        calibrate(**arguments, num_inference_steps=8)


@pytest.mark.parametrize("budget", [9, 50])
def test_more_full_steps_than_steps_are_refused(budget):
    with pytest.raises(ValueError, match="full_steps must lie between 1 and 8, got"):
        calibrate(field_pipeline(), ["a", "b"], budget, num_inference_steps=8)


# ---- What a plan belongs to


class Forwarding(FieldPipeline):
    def __call__(self, prompt, **kwargs):
        return super().__call__(prompt, **kwargs)


def belonging(**changes):
    plan = calibrate(field_pipeline(), ["a", "b"], 3, num_inference_steps=6, guidance_scale=3.5)
    belongs = {"arguments": plan.arguments, "scheduler": plan.scheduler} | changes
    return Plan(plan.full, plan.weights, plan.timesteps, "output", **belongs)


def run(pipe, **arguments):
    noise = torch.Generator().manual_seed(0)
    return pipe("a", **{"num_inference_steps": 6, "generator": noise} | arguments)


def test_where_all_is_as_it_was_nothing_is_said():
    with warnings.catch_warnings(), cached(field_pipeline(), belonging()) as told:
        warnings.simplefilter("error")
        pipe = None
    pipe = field_pipeline()
    with warnings.catch_warnings(), cached(pipe, belonging()) as told:
        warnings.simplefilter("error")
        run(pipe, guidance_scale=3.5)
    assert told.full == 3


def test_other_guidance_is_told():
    pipe = field_pipeline()
    expected = r"made at guidance_scale 3\.5, called with 7: .* calibrate with guidance_scale=7\. "
    expected += r"At so much stronger guidance a built-in plan \(full_steps=3\) is usually nearer"
    with cached(pipe, belonging()), pytest.warns(PlanWarning, match=expected):
        run(pipe, guidance_scale=7.0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.2])
def test_a_built_in_plan_is_named_for_much_stronger_guidance_alone(scale):
    pipe, expected = field_pipeline(), f"calibrate with guidance_scale={scale:g}$"
    with cached(pipe, belonging()), pytest.warns(PlanWarning, match=expected):
        run(pipe, guidance_scale=scale)


def test_a_plan_of_several_guidance_scales_serves_all_between():
    pipe, scales = field_pipeline(), [1.0, 3.0, 2.0, 3.0]
    prompts = [{"prompt": f"{i} cats", "guidance_scale": s} for i, s in enumerate(scales)]
    plan = calibrate(pipe, prompts, 3, method="EigenCache", num_inference_steps=6, passes=2)
    assert plan.arguments["guidance_scale"] == [1.0, 3.0]
    with warnings.catch_warnings(), cached(pipe, plan):
        warnings.simplefilter("error")
        run(pipe, guidance_scale=2.5, passes=2)
    expected = "made at guidance_scale 1 to 3, called with 5: .* stronger guidance a built-in"
    with cached(pipe, plan), pytest.warns(PlanWarning, match=expected):
        run(pipe, guidance_scale=5.0, passes=2)


@pytest.mark.parametrize("method", ["EigenCache-design", "EigenCache", "TaylorSeer"])
@pytest.mark.parametrize(("made", "used"), [(1, 2), (2, 1)])
def test_guidance_that_is_switched_on_or_off_is_told(method, made, used):
    """A scale that is the same may do nothing: that of Qwen-Image needs a negative prompt."""
    pipe, scale = field_pipeline(), {"guidance_scale": 3.0}
    own = {"tap": "output"} if method == "TaylorSeer" else {}
    plan = calibrate(
        pipe, ["a", "b"], 3, method=method, num_inference_steps=6, passes=made, **own, **scale
    )
    assert plan.passes == (made, made)
    expected = f"took each latent {made} times a step, in this call it is {used}"
    with cached(pipe, plan), pytest.warns(PlanWarning, match=expected):
        run(pipe, passes=used, **scale)
    with warnings.catch_warnings(), cached(pipe, plan):
        warnings.simplefilter("error")
        run(pipe, passes=made, **scale)


def test_a_plan_made_with_and_without_guidance_serves_both(tmp_path):
    pipe, scale = field_pipeline(), {"guidance_scale": 3.0}
    prompts = [{"prompt": "a", "passes": 1}, {"prompt": "b", "passes": 2}]
    calibrate(pipe, prompts, 3, num_inference_steps=6, **scale).save(tmp_path / "plan.safetensors")
    plan = Plan.load(tmp_path / "plan.safetensors")
    assert plan.passes == (1, 2)
    with warnings.catch_warnings(), cached(pipe, plan):
        warnings.simplefilter("error")
        for passes in (1, 2):
            run(pipe, passes=passes, **scale)


@pytest.mark.parametrize("passes", [2, "two", (1,), (1, "2"), (1, float("nan"))])
def test_passes_are_a_range(passes):
    with pytest.raises(PlanError, match="`passes` must be None or a range"):
        belonging(passes=passes)


@pytest.mark.parametrize("plan", [9, "plan.safetensors"])
def test_what_is_no_plan_is_refused(plan):
    with pytest.raises(ValueError, match="stated as full_steps, and a file is read by"):
        enable_cache(field_pipeline(), plan)


@pytest.mark.parametrize(
    ("kind", "name", "taken"),
    [
        (StableDiffusionPipeline, "guidance", False),  # it takes any keyword, and ignores it
        (StableDiffusionPipeline, "guidance_scale", True),
        (StableDiffusionPipeline, "callback_steps", True),  # an old name that it still reads
        (Forwarding, "guidance", True),  # who knows
    ],
)
def test_keywords_that_a_pipeline_ignores_are_refused(kind, name, taken):
    with contextlib.ExitStack() as stack:
        if not taken:
            stack.enter_context(pytest.raises(ValueError, match="takes no argument 'guidance'"))
        check_arguments(kind, [], {name: 3})


def test_guidance_that_a_pipeline_does_not_say_is_not_checked():
    pipe = field_pipeline()
    plan = belonging(arguments={"true_cfg_scale": 2.0, "height": 64, "flag": True})
    with cached(pipe, plan), pytest.warns(PlanWarning) as told:
        run(pipe)
    (only,) = told
    assert "true_cfg_scale 2; whether FieldPipeline is called with that is not checked" in str(
        only.message
    )


def test_another_scheduler_is_told():
    with pytest.warns(PlanWarning, match="made with DDIMScheduler, the pipeline has FlowMatchEul"):
        enable_cache(field_pipeline(), belonging(scheduler="DDIMScheduler"))


def test_another_number_of_steps_says_what_to_do():
    pipe = field_pipeline()
    message = "made for 6 steps, the sampler takes 4: design it again from its kernel"
    with cached(pipe, belonging()), pytest.raises(PlanError, match=message):
        run(pipe, num_inference_steps=4)


# ---- The cache on a pipeline


def test_a_pipeline_is_cached_as_its_transformer_is(pipe):
    plan = calibrate(pipe, CALLS[:1], 3, method="FORA", **SMALL)

    def image():
        noise = torch.Generator().manual_seed(1)
        return pipe(**CALLS[1], generator=noise, **SMALL).images[0].tobytes()

    plain = image()
    with cached(pipe.transformer, plan):  # which finds its steps by its timesteps
        expected = image()
    with cached(pipe, plan) as told:
        assert image() == expected != plain
        with pytest.raises(ValueError, match="already enabled"):
            enable_cache(pipe, plan)
    assert (told.full, told.skipped) == (3, 5)
    assert image() == plain
    enable_cache(pipe, plan)
    assert image() == expected
    disable_cache(pipe)
    assert image() == plain


def test_another_number_of_steps_is_refused_in_plain_words(pipe):
    plan = calibrate(pipe, CALLS[:1], 3, method="FORA", **SMALL)
    with cached(pipe, plan), pytest.raises(PlanError, match="8 steps, the sampler takes 9"):
        pipe(**CALLS[1], **SMALL | {"num_inference_steps": 9})


@pytest.mark.parametrize("model", [None, "flux", tiny_pipeline().vae.config])
def test_what_has_no_transformer_is_refused(model):
    with pytest.raises(ValueError, match="is not a diffusers pipeline, nor a transformer"):
        enable_cache(model, plan_of())


# ---- What it says


def spent(monkeypatch, plan, seconds):
    """Return the stats of calls that take the given seconds, by a clock that is turned by hand."""
    now = [0.0]
    monkeypatch.setattr(stats.time, "perf_counter", lambda: now[0])
    told = CacheStats(plan)
    for full, took in seconds:
        told.begin(full, torch.device("cpu"))
        now[0] += took
        told.end()
        now[0] += 100.0  # what the pipeline does in between
    return told


def test_seconds_saved_are_skipped_calls_times_the_difference_of_medians(monkeypatch):
    calls = [(True, 9.0), (True, 2.0), (True, 1.0), (False, 0.5), (False, 0.25), (False, 0.25)]
    told = spent(monkeypatch, plan_of(), calls)
    assert (told.full, told.skipped) == (3, 3)
    assert (told.full_seconds, told.skipped_seconds) == (2.0, 0.25)
    assert told.seconds_saved == 3 * (2.0 - 0.25)
    assert str(told) == (
        "3 steps in full, 3 skipped; 5.25 s saved (a full step takes 2e+03 ms, a skipped one "
        "250 ms)"
    )
    assert repr(told) == "CacheStats(full=3, skipped=3)"


def test_nothing_sampled_is_said_plainly(monkeypatch):
    told = spent(monkeypatch, plan_of(), [])
    assert np.isnan(told.full_seconds) and told.seconds_saved == 0
    assert str(told) == "0 steps in full, 0 skipped"


def test_predictions_are_those_of_the_plan():
    plan = plan_of()
    predicted = {"predicted_psnr": 51.26, "predicted_error": 0.0125}
    plan = Plan(plan.full, plan.weights, plan.timesteps, plan.tap, **predicted)
    told = CacheStats(plan)
    assert (told.predicted_psnr, told.predicted_error) == (51.26, 0.0125)
    assert str(told).endswith("predicted PSNR 51.3 dB; predicted error of latents 0.013")
    assert np.isnan(CacheStats(plan.retimed(TIMESTEPS / 2)).predicted_psnr)


def test_memory_does_not_grow_with_calls(monkeypatch):
    told = spent(monkeypatch, plan_of(), [(True, 5.0)] * 10 + [(True, 1.0)] * KEPT)
    assert told.full == KEPT + 10 and len(told._full) == KEPT
    assert told.full_seconds == 1.0


def test_an_interrupted_call_is_neither_counted_nor_timed():
    model = tiny_flux()

    def fail(*arguments):
        raise ZeroDivisionError

    with cached(model, plan_of()) as told:
        hook = model.proj_out.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            list(sampling(model, TIMESTEPS))
        hook.remove()
        assert (told.full, len(told._full)) == (0, 0)
        list(sampling(model, TIMESTEPS))
    assert (told.full, told.skipped, len(told._full), len(told._skipped)) == (3, 3, 3, 3)


class Event:
    """Stands in for an event of a GPU: it knows its time only once it is waited for."""

    now, waits = 0.0, 0

    def __init__(self, device, enable_timing):
        assert device.type == "cuda" and enable_timing

    def record(self):
        Event.now += 5.0
        self.at = Event.now

    def synchronize(self):
        Event.waits += 1

    def elapsed_time(self, end):
        return end.at - self.at


def test_a_gpu_is_not_waited_for_until_a_time_is_read(monkeypatch):
    monkeypatch.setattr(stats.torch, "Event", Event)
    told, gpu = CacheStats(plan_of()), torch.device("cuda")
    for full in (True, False, False):
        told.begin(full, gpu)
        told.end()
    assert repr(told) == "CacheStats(full=1, skipped=2)" and Event.waits == 0
    assert (told.full_seconds, told.skipped_seconds) == (0.005, 0.005)
    assert Event.waits == 3
