"""The job that makes plans with the pipeline: for a quality, of any method."""

import argparse
import json

import pytest
import torch
from helpers import ROOT

from eigencache.calibration import Calibration, calibrate
from eigencache.calibration.sampler import load_pipeline
from eigencache.commands.prompts import read_calls
from eigencache.kernel import OUTPUT
from eigencache.plan import Plan
from reproduction.stages import refine as stage

ARGUMENTS = {"num_inference_steps": 6, "height": 16, "width": 16, "max_sequence_length": 24}
PROMPTS = ROOT / "data/prompts/emoji-calibration.txt"


@pytest.fixture(scope="module")
def pipe(tiny_model):
    torch.set_num_threads(1)
    return load_pipeline(tiny_model, "float32")


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "TaylorSeer", "psnr": 40, "tap": "output", "order": 1},
        {"method": "FORA", "psnr": 40},
        {"method": "EigenCache-design", "psnr": 48, "window": 3},
        pytest.param(
            {"method": "EigenCache", "psnr": 48, "rounds": 1, "features": "stride-8"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda spec: spec["method"],
)
def test_the_plan_for_a_quality_is_that_of_calibrate(pipe, tmp_path, monkeypatch, spec):
    monkeypatch.setattr(stage, "loaded", lambda arguments, calls: pipe)
    calls = read_calls(PROMPTS, 2)
    kernel = None if spec["method"] == "EigenCache" else tmp_path / "kernel.safetensors"
    if kernel:
        Calibration(pipe, calls, ARGUMENTS, 7).kernel(OUTPUT).save(kernel)
    stage.main(
        argparse.Namespace(
            method=json.dumps(spec), kernel=kernel, prompts=PROMPTS, num_prompts=2, seed=7,
            arguments=ARGUMENTS, plans=[tmp_path / "psnr.safetensors"],
        )
    )  # fmt: skip
    made = Plan.load(tmp_path / "psnr.safetensors")
    method, psnr, tap = (spec.pop(name, None) for name in ("method", "psnr", "tap"))
    own = calibrate(pipe, calls, psnr=psnr, method=method, options=spec, tap=tap, **ARGUMENTS)
    assert made.predicted_psnr >= psnr and made.tap == own.tap
    assert len(made.full_steps) < 6
    assert made.full_steps == own.full_steps
    assert made.predicted_psnr == pytest.approx(own.predicted_psnr, abs=0.05)
    assert kernel or made.digest == own.digest  # from the same kernel
