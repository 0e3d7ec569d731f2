"""The package from Python: a plan from a pipeline, the cache on it, and what that says it saved."""

import ast
import json
import subprocess
import sys
from code import InteractiveInterpreter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import flow_timesteps, sampling, tiny_flux, tiny_pipeline
from torch import nn

import eigencache
from eigencache import calibration
from eigencache.calibration import calibrate
from eigencache.calibration.recording import Kind, record_kernels
from eigencache.calibration.sampler import Settings, encode, load_pipeline
from eigencache.commands.prompts import read_prompts
from eigencache.methods import METHODS, make_plan
from eigencache.plan import PREDICTED, PREDICTED_ERROR, Plan, PlanError, predicted_psnr
from eigencache.predictors import Taylor
from eigencache.runtime import cached, disable_cache, enable_cache, stats
from eigencache.runtime.stats import KEPT, CacheStats
from eigencache.schedules import Steps

ROOT = Path(__file__).parents[2]
PACKAGE = Path(eigencache.__file__).parent
PROMPTS = read_prompts(ROOT / "data/prompts/emoji-calibration.txt", 4)
SETTINGS = Settings(num_steps=8, height=64, width=64, max_sequence_length=16, dtype="float32")
SMALL = {"num_inference_steps": 8, "height": 64, "width": 64, "max_sequence_length": 16}
TIMESTEPS = flow_timesteps(6)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(ROOT / "data/emoji-flux", "float32")


def plan_of(timesteps=TIMESTEPS, **source):
    return make_plan(Steps([0, 1, 3]), Taylor(1), timesteps, tap="output")


# ---- The snippet of the README


SNIPPET = """
import eigencache
plan = eigencache.load_plan("plan.safetensors")
with eigencache.cached(pipe, plan) as stats:
    image = pipe(prompt, num_inference_steps=50).images[0]
print(stats)
"""


def test_the_snippet_runs_as_it_is_written(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipe, "default_sample_size", 8)  # 64 pixels, not 1024
    eigencache.calibrate(pipe, PROMPTS[:1], full_steps=9).save("plan.safetensors")
    names = {"pipe": pipe, "prompt": "a red apple on a blue background"}
    InteractiveInterpreter(names).runcode(compile(SNIPPET, "README", "exec"))
    said = capsys.readouterr().out
    assert said.startswith("9 steps in full, 41 skipped; ")
    assert " s saved (a full step takes " in said and "predicted error of latents 0." in said
    assert names["image"].size == (64, 64)
    assert 0 < names["stats"].skipped_seconds < 0.1 * names["stats"].full_seconds


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
        if isinstance(node, ast.ImportFrom) and node.module.startswith("eigencache.")
        for alias in node.names
    }
    homes = {(f"eigencache.{home}", name) for name, home in eigencache._HOMES.items()}
    assert told == homes
    assert all(getattr(eigencache, name) is not None for name in eigencache.__all__)


# ---- Calibrating


def test_a_calibrated_plan_is_that_of_its_kernel(pipe):
    texts = [encode(pipe, prompt, SETTINGS) for prompt in PROMPTS[:2]]
    kind = Kind.of("output.full.second-moment")
    (kernel,) = record_kernels(pipe, texts, SETTINGS, 5, [kind])
    expected = METHODS["EigenCache-design"].plan(4, kernel.timesteps, kernel, window=3)
    plan = calibrate(pipe, PROMPTS[:2], 4, seed=5, window=3, **SMALL)
    assert np.array_equal(plan.full, expected.full)
    assert np.array_equal(plan.weights, expected.weights)
    assert plan.source == expected.source and float(plan.source[PREDICTED_ERROR]) > 0
    assert json.loads(plan.source["kernel settings"]) == asdict(SETTINGS)


def test_calibrating_leaves_the_pipeline_as_it_was(pipe):
    before = dict(pipe._progress_bar_config)
    calibrate(pipe, PROMPTS[:1], 3, method="FORA", **SMALL)
    assert pipe._progress_bar_config == before
    hooked = [m for m in pipe.transformer.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert not hooked
    assert pipe.text_encoder is not None


def test_a_formula_takes_one_run_and_its_own_tap(pipe, monkeypatch):
    calls = []

    def counted(pipe, texts, *rest):
        calls.append(len(texts))
        return record_kernels(pipe, texts, *rest)

    monkeypatch.setattr(calibration, "record_kernels", counted)
    plan = calibrate(pipe, PROMPTS, 5, method="TaylorSeer", order=2, **SMALL)
    assert (calls, plan.tap, plan.source["predictor"]) == ([1], "modules", str(Taylor(2)))


def test_a_quality_takes_as_few_steps_as_are_predicted_to_give_it(pipe):
    plan = calibrate(pipe, PROMPTS, psnr=40, **SMALL)
    assert predicted_psnr(plan) >= 40
    assert 2 <= len(plan.full_steps) < 8
    with cached(pipe, plan) as told:
        pass
    assert told.predicted_psnr == predicted_psnr(plan)


def test_the_closed_loop_predicts_psnr_and_not_the_open_loop_s_error(pipe):
    plan = calibrate(pipe, PROMPTS, 4, method="EigenCache", held_out=2, **SMALL)
    assert len(plan.full_steps) == 4 and predicted_psnr(plan) > 30
    assert "in closed loop" in plan.source["closed loop"]
    assert PREDICTED_ERROR not in plan.source and PREDICTED in plan.source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "EigenCash"}, "no method 'EigenCash'; there are FORA, "),
        ({"full_steps": None}, "state either full_steps"),
        ({"psnr": 50}, "state either full_steps"),
        ({"full_steps": 0}, "between 1 and the 8 steps"),
        ({"full_steps": 9}, "between 1 and the 8 steps"),
        ({"full_steps": None, "psnr": -1}, "psnr must be a finite number"),
        ({"full_steps": None, "psnr": 50, "method": "FORA"}, "an interval does not give"),
        ({"full_steps": None, "psnr": 50, "prompts": ["a"]}, "state two at least"),
        ({"order": 2}, r"unknown options \['order'\]"),
        ({"jitter": -1}, "jitter must be"),
        ({"method": "EigenCache"}, "4 calibration prompts leave none to fit on when 16"),
        ({"method": "EigenCache", "tap": "modules"}, "the closed loop is for 'output'"),
        ({"prompts": "a cat"}, "got a single text"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", " "]}, r"prompts\[1\] must be a text"),
        ({}, "no text_encoder and no text_encoder_2"),
        ({"pipe": nn.Linear(1, 1)}, "Linear has no arguments"),
        ({"pipe": "models/emoji-flux"}, "str is neither"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_any_run(arguments, message):
    arguments = {"pipe": tiny_pipeline(), "prompts": PROMPTS, "full_steps": 4} | arguments
    with pytest.raises(ValueError, match=message):
        calibrate(**arguments, num_inference_steps=8)


# ---- The cache on a pipeline


def test_a_pipeline_is_cached_as_its_transformer_is(pipe):
    plan = calibrate(pipe, PROMPTS[:1], 3, method="FORA", **SMALL)

    def image():
        noise = torch.Generator().manual_seed(1)
        return pipe("a cat", generator=noise, **SMALL).images[0].tobytes()

    plain = image()
    with cached(pipe.transformer, plan):
        expected = image()
    with cached(pipe, plan) as told:
        assert image() == expected != plain
        with pytest.raises(ValueError, match="already enabled"):
            enable_cache(pipe.transformer, plan)
    assert (told.full, told.skipped) == (3, 5)
    assert image() == plain
    enable_cache(pipe, plan)
    assert image() == expected
    disable_cache(pipe)
    assert image() == plain


def test_another_number_of_steps_is_refused_in_plain_words(pipe):
    plan = calibrate(pipe, PROMPTS[:1], 3, method="FORA", **SMALL)
    with cached(pipe, plan), pytest.raises(PlanError, match="made for 8 steps"):
        pipe("a cat", **SMALL | {"num_inference_steps": 9})


@pytest.mark.parametrize("model", [None, "flux", tiny_pipeline().vae.config])
def test_what_has_no_transformer_is_refused(model):
    with pytest.raises(ValueError, match="neither a diffusers transformer nor a pipeline"):
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
        told.end(full, torch.device("cpu"))
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
    source = {PREDICTED: "51.26", PREDICTED_ERROR: "0.0125"}
    plan = Plan(plan.full, plan.weights, plan.timesteps, plan.tap, source=source)
    told = CacheStats(plan)
    assert (told.predicted_psnr, told.predicted_error) == (51.26, 0.0125)
    assert str(told).endswith("predicted PSNR 51.3 dB; predicted error of latents 0.013")
    assert not {PREDICTED, PREDICTED_ERROR} & set(plan.retimed(TIMESTEPS / 2).source)


def test_memory_does_not_grow_with_calls(monkeypatch):
    told = spent(monkeypatch, plan_of(), [(True, 5.0)] * 10 + [(True, 1.0)] * KEPT)
    assert told.full == KEPT + 10 and len(told._full) == KEPT
    assert told.full_seconds == 1.0


def test_an_interrupted_call_is_counted_and_not_timed():
    model = tiny_flux()

    def fail(*arguments):
        raise ZeroDivisionError

    with cached(model, plan_of()) as told:
        hook = model.proj_out.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            list(sampling(model, TIMESTEPS))
        hook.remove()
        assert (told.full, len(told._full)) == (1, 0)
        list(sampling(model, TIMESTEPS))
    assert (told.full, told.skipped, len(told._full), len(told._skipped)) == (4, 3, 3, 3)


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
        told.end(full, gpu)
    assert repr(told) == "CacheStats(full=1, skipped=2)" and Event.waits == 0
    assert (told.full_seconds, told.skipped_seconds) == (0.005, 0.005)
    assert Event.waits == 3
