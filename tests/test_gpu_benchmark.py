"""The benchmark of a transformer of FLUX.1-dev's size (`benchmarks/gpu.py`), on a tiny one."""

import argparse
import math
import statistics

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FluxTransformer2DModel

from benchmarks import gpu
from benchmarks.gpu import FULL_STEPS, NUM_STEPS, SCALES, UNCACHED, Denoising
from benchmarks.peers.compare import counted
from eigencache.plan import TAPS

OURS = {("EigenCache", "output")} | {(f"TaylorSeer-{n}", tap) for n in (1, 2) for tap in TAPS}
THEIRS = {(f"diffusers TaylorSeer-{n}", "modules") for n in (1, 2)}


@pytest.fixture(scope="module")
def denoising():
    torch.set_num_threads(1)
    return Denoising(SCALES["small"], "cpu")


@pytest.fixture(scope="module")
def cases(denoising):
    return {(case.method, case.tap): case for case in gpu.cases(denoising.timesteps)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "small.csv"
    gpu.main(argparse.Namespace(scale="small", compile=False, out=path))
    return pd.read_csv(path, keep_default_na=False)


def test_the_table_has_every_case_and_quantity_once(table):
    assert not table.duplicated(["method", "tap", "compiled", "quantity"]).any()
    found = table.groupby(["method", "tap"]).quantity.agg(set).to_dict()
    assert found.keys() == {(UNCACHED, "")} | OURS | THEIRS
    measured = {"full_step_seconds", "loop_seconds", "peak_memory_mb"}
    assert found.pop((UNCACHED, "")) == measured
    beside = {"speedup", "share_of_ideal", "added_memory_mb", "added_memory_share"}
    assert all(names == measured | beside | {"skipped_step_seconds"} for names in found.values())
    assert np.isfinite(table.value).all()
    assert set(table.full_steps) == {NUM_STEPS, FULL_STEPS} and not table.compiled.any()


def test_a_skipped_step_at_the_output_is_far_cheaper_than_a_full_one(table):
    values = table.set_index(["method", "tap", "quantity"])["value"].sort_index()
    eigencache = values["EigenCache", "output"]
    assert 0 < 5 * eigencache["skipped_step_seconds"] < eigencache["full_step_seconds"]


def test_what_is_derived_is_derived_right():
    uncached = {"loop_seconds": 10.0, "peak_memory_mb": 200.0}
    found = {"loop_seconds": 2.0, "peak_memory_mb": 203.0}
    assert gpu.beside(found, uncached, 5) == {
        "speedup": 5.0,
        "share_of_ideal": 0.5,
        "added_memory_mb": 3.0,
        "added_memory_share": 0.015,
    }


def test_every_case_computes_the_steps_that_it_says(denoising, cases):
    for case in cases.values():
        with case.apply(denoising), counted(denoising.transformer) as calls:
            denoising.run()
        # A gate or half of the blocks would show here too: the middle block's attention counts.
        assert len(calls) == len(case.full_steps), case


def test_skipped_steps_of_eigencache_are_made_of_six_anchors(denoising, cases):
    seen = []
    with cases["EigenCache", "output"].apply(denoising):
        hook = denoising.transformer._diffusers_hook.get_hook("eigencache_stream")
        seen = [len(row) for row in hook.rows if row]
    assert max(seen) == 6 and len(seen) == NUM_STEPS - FULL_STEPS


def test_timesteps_are_those_of_fluxs_pipeline():
    """At 4,096 image tokens the shift is exp(1.15), that of FLUX.1-dev at 1024 pixels."""
    scheduler = gpu.FlowMatchEulerDiscreteScheduler(**gpu.SCHEDULER)
    sigmas, mu = np.linspace(1, 1 / NUM_STEPS, NUM_STEPS), gpu.calculate_shift(64**2)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    shift = math.exp(1.15)
    expected = 1000 * shift / (shift + 1 / sigmas - 1)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), expected, rtol=1e-5)


def test_the_full_scale_is_flux_1_dev():
    with torch.device("meta"):
        model = FluxTransformer2DModel(**SCALES["full"].config)
    assert sum(weight.numel() for weight in model.parameters()) == 11_901_408_320
    assert not list(model.buffers())  # none that `random_flux` would leave undefined
    scale = SCALES["full"]
    assert (scale.side**2, scale.text_tokens, scale.dtype) == (4096, 512, torch.bfloat16)


def test_random_weights_are_the_same_again_and_keep_states_finite(denoising):
    config = SCALES["small"].config
    one, two = (gpu.random_flux(config, torch.float32, "cpu").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    outputs = []
    hook = denoising.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    denoising.run()
    hook.remove()
    assert len(outputs) == NUM_STEPS
    assert all(0.1 < float(output.std()) < 10 for output in outputs)


def test_compiling_covers_every_case_and_leaves_no_trace(denoising, monkeypatch):
    """The backend "eager" compiles nothing, but torch traces and guards for it as for any other."""
    plain = denoising.transformer(
        denoising.noise, timestep=torch.ones(1), **denoising.arguments
    )[0].detach()  # fmt: skip
    monkeypatch.setattr(gpu, "measured", quick)
    made = list(gpu.measure(denoising, backend="eager", fullgraph=True))
    for is_compiled in (False, True):
        found = [(case.method, case.tap) for case, state, _ in made if state == is_compiled]
        assert set(found) == {(UNCACHED, "")} | OURS | THEIRS and len(set(found)) == len(found)
    assert not any(map(is_traced, denoising.transformer.modules()))
    again = denoising.transformer(denoising.noise, timestep=torch.ones(1), **denoising.arguments)
    assert torch.equal(plain, again[0])


def quick(denoising, case):
    """Sample once."""
    with case.apply(denoising):
        steps, seconds = denoising.run()
    return {"loop_seconds": seconds, "peak_memory_mb": 1.0, "step": statistics.median(steps)}


def is_traced(module):
    return hasattr(module.forward, "_torchdynamo_orig_callable")


def test_targets_tell_what_is_missed():
    def rows(method, tap, **values):
        return [
            {"compiled": False, "method": method, "tap": tap, "quantity": k, "value": v}
            for k, v in values.items()
        ]

    made = rows("EigenCache", "output", share_of_ideal=0.98, added_memory_share=0.02)
    costs = {"skipped_step_seconds": 1.0, "loop_seconds": 5.0, "added_memory_mb": 7.0}
    for order in (1, 2):
        made += rows(f"TaylorSeer-{order}", "modules", **costs)
        made += rows(f"diffusers TaylorSeer-{order}", "modules", **costs | {"loop_seconds": 4.0})
    lines = gpu.targets(pd.DataFrame(made))
    assert len(lines) == 8
    assert lines[0].startswith("met (eager): output tap, share of the ideal speed-up")
    missed = [line for line in lines if line.startswith("MISSED")]
    assert "added memory" in missed[0] and "0.02, target 0.01" in missed[0]
    assert len(missed) == 3 and all("loop_seconds" in line for line in missed[1:])


def test_the_full_scale_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "default_device", lambda: "cpu")
    with pytest.raises(SystemExit, match="needs a GPU"):
        gpu.main(argparse.Namespace(scale="full", compile=False, out=None))
