"""The benchmarks for a GPU (`benchmarks/gpu.py`, `gpu_workflow.py`), on tiny models on the CPU."""

import argparse
import csv
import gc
import gzip
import importlib.util
import json
import math
import os
import statistics
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

import eigencache
from benchmarks import gpu, gpu_workflow
from benchmarks.gpu import BLOCKS, FULL_STEPS, NUM_STEPS, OURS, SCALES, UNCACHED, Session, Table
from benchmarks.peers.compare import counted

pytestmark = pytest.mark.slow

SMALL = SCALES["small"]
FLUX, QWEN, WAN = "FluxTransformer2DModel", "QwenImageTransformer2DModel", "WanTransformer3DModel"
TAPS = {("TaylorSeer-1", tap) for tap in ("hidden", "blocks", "delta", "modules")}
THEIRS = {
    ("diffusers FirstBlockCache", "blocks"),
    ("diffusers TaylorSeer-1", "modules"),
    ("diffusers TaylorSeer-1", "output"),
}
OUTPUT = {(UNCACHED, ""), (OURS, "output")}
HAS_CACHE_DIT = importlib.util.find_spec("cache_dit") is not None


@pytest.fixture(scope="module")
def denoising():
    torch.set_num_threads(1)
    return gpu.Denoising(gpu.flux_pipeline(SMALL, "cpu"), SMALL.pixels[:1] * 2, SMALL, "cpu")


@pytest.fixture(scope="module")
def timesteps(denoising):
    denoising.run()
    return denoising.timesteps[NUM_STEPS]


@pytest.fixture(scope="module")
def cases(timesteps):
    made = [gpu.uncached(), *gpu.output_cases(timesteps, 3, SCALES["full"].budgets)]
    made += gpu.tap_cases(timesteps) + gpu.peer_cases()
    return made + ([gpu.cache_dit_case(timesteps)] if HAS_CACHE_DIT else [])


def arguments(**changed):
    """Those of the command line: a small run of everything, with others in their place."""
    known = {"scale": "small", "minutes": 10, "backend": "eager", "show": None, "out": None}
    return argparse.Namespace(**known | {"first": 1} | changed)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of a small run in which torch traces what it compiles, but compiles nothing."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("gpu") / "small.csv"
    gpu.main(arguments(out=path))
    return path


@pytest.fixture(scope="module")
def table(made):
    return pd.read_csv(made, keep_default_na=False, na_values=[""])


def test_the_table_has_every_case_once_and_none_failed(table):
    assert list(table.columns) == list(gpu.COLUMNS)
    assert "error" not in set(table.quantity), table[table.quantity == "error"].note.tolist()
    missing = table[table.quantity == "left_out"]
    assert set(missing.method) <= {"cache-dit DBCache + TaylorSeer-1"}
    assert len(missing) == (not HAS_CACHE_DIT)
    key = ["model", "image_tokens", "num_steps", "method", "tap", "full_steps", "compiled"]
    assert not table.duplicated([*key, "quantity"]).any()
    loops = table[(table.num_steps == NUM_STEPS) & (table.quantity == "loop_seconds")]
    found = {
        state: {(row.method, row.tap if isinstance(row.tap, str) else "") for row in rows}
        for state, rows in (
            (state, list(rows.itertuples()))
            for state, rows in loops.groupby(["model", "image_tokens", "compiled"])
        )
    }
    again = {(gpu.AGAIN, "")}
    peers = THEIRS | ({("cache-dit DBCache + TaylorSeer-1", "blocks")} if HAS_CACHE_DIT else set())
    assert found == {
        (FLUX, 64, "no"): OUTPUT | TAPS | peers | again,
        (FLUX, 64, "blocks"): OUTPUT | again,
        (FLUX, 64, "whole"): OUTPUT | again,
        (FLUX, 16, "no"): OUTPUT | again,
        (FLUX, 16, "blocks"): OUTPUT | again,
        (QWEN, 64, "no"): OUTPUT,
        (WAN, 72, "no"): OUTPUT,
    }
    assert np.isfinite(table.value[table.quantity != "left_out"]).all()
    assert set(table.full_steps.dropna()) == {3, 6, *SMALL.budgets, NUM_STEPS}


def test_a_skipped_step_at_the_output_is_far_cheaper_than_a_full_one(table):
    rows = table[(table.method == OURS) & (table.num_steps == NUM_STEPS)]
    wide = rows.pivot_table(
        "value", ["model", "image_tokens", "compiled", "full_steps"], "quantity"
    )
    assert len(wide) == 9
    assert (wide.skipped_step_seconds > 0).all()
    assert (5 * wide.skipped_step_seconds < wide.full_step_seconds).all()
    # Steps are between the same marks as the loop, so nothing of it is lost.
    shares = wide.share_of_loop_in_full_steps
    assert ((shares > 0.3) & (shares < 1)).all()


def test_units_are_told_by_names(table):
    units = table.groupby("quantity").unit.agg(set)
    assert units["loop_seconds"] == {"s"} and units["peak_memory_mb"] == {"MB"}
    assert units["share_of_ideal"] == {"1"} and units["network_calls"] == {"1"}


def test_what_users_wait_is_worked_out_from_what_was_measured(table):
    of = table[table.method == "EigenCache-design"].set_index("quantity")
    value = of.value
    assert value["network_calls"] == gpu.CALIBRATION_CALLS == NUM_STEPS + 5 + 9
    assert value["network_seconds"] + value["between_calls_seconds"] == pytest.approx(
        value["calibrate_1_prompt_seconds"]
    )
    between = max(0, value["between_calls_seconds"] - value["fit_seconds"])
    for prompts in (8, 32):
        expected = prompts * (value["network_seconds"] + between) + value["fit_seconds"]
        assert value[f"wait_{prompts}_prompts_seconds"] == pytest.approx(expected)
        assert of.note[f"wait_{prompts}_prompts_seconds"].startswith(f"{prompts} x (")


def test_the_trace_and_its_summary_lie_beside_the_table(made):
    events = json.loads(gzip.decompress(made.with_suffix(".trace.json.gz").read_bytes()))
    windows = gpu.windows_of(events["traceEvents"])
    assert len(windows) == gpu.PROFILED_STEPS
    summary = json.loads(made.with_suffix(".profile.json").read_text())
    assert summary.keys() == {"128 px", "64 px", "64 px, blocks compiled"}
    for state in summary.values():
        assert state.keys() == {"uncached", "cached"}
        plain, full = state["uncached"]["full"], state["cached"]["full"]
        assert plain["reads"] == 0  # a pipeline without a cache waits for nothing
        assert full["network_cpu_seconds"] > 0.2 * plain["network_cpu_seconds"]
        assert state["cached"]["skipped"]["network_cpu_seconds"] == 0
        assert full["cache_cpu_seconds"] > plain["cache_cpu_seconds"]


def test_reads_of_the_device_are_counted_at_the_steps_that_make_them(denoising):
    denoising.run(gpu.PROFILED_STEPS)
    calls = []

    def read_once(module, arguments, output):
        calls.append(float(output[0].sum()) if len(calls) == 2 else 0.0)

    hook = denoising.pipe.transformer.register_forward_hook(read_once)
    try:
        found = gpu.by_step(gpu.trace_of(denoising, False))
    finally:
        hook.remove()
    # `aten::item` and, inside of it, `aten::_local_scalar_dense`.
    assert [each["reads"] for each in found] == [0, 0, 2, 0, 0, 0]


def test_a_trace_of_a_gpu_is_read_right():
    def event(category, name, begin, duration, **args):
        return {"cat": category, "name": name, "ts": begin, "dur": duration, "tid": 1,
                "args": args}  # fmt: skip

    def note(begin):
        return event("user_annotation", gpu.STEP_ENDS, begin, 1)

    events = [
        {"ph": "M", "name": "process_name"},
        note(0), note(100), note(200),
        {**note(500), "cat": "gpu_user_annotation"},
        event("cuda_runtime", "cudaLaunchKernel", 20, 10, correlation=7),
        event("cuda_runtime", "cudaMemcpyAsync", 150, 5, correlation=8),
        event("cuda_runtime", "cudaStreamSynchronize", 160, 30, correlation=9),
        # The device does it later, when the host is at another step.
        event("kernel", "gemm", 130, 40, correlation=7),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 300, 2, correlation=8),
        event("python_function", "diffusers/pipelines/flux/pipeline_flux.py(9): __call__", -9, 300),
        event("python_function", "eigencache/hooks.py(1): compute", 110, 80),
        event("python_function", "torch/functional.py(1): add", 115, 5),
        event("python_function", "diffusers/models/transformers/transformer_flux.py(1): forward",
              120, 20),
    ]  # fmt: skip
    first, second = gpu.by_step(events)
    assert first["host_seconds"] == pytest.approx(99e-6) == second["host_seconds"]
    assert (first["launches"], first["waits"], first["copies_to_host"]) == (1, 0, 0)
    assert (second["launches"], second["waits"], second["copies_to_host"]) == (1, 1, 1)
    assert first["device_busy_seconds"] == pytest.approx(40e-6)
    first, second = gpu.python_by_step(events)
    assert first == pytest.approx({"pipeline": 89e-6, "driver": 10e-6})
    assert second == pytest.approx(
        {"pipeline": 19e-6, "cache": 25e-6, "network": 20e-6, "driver of cache": 35e-6}
    )


def test_host_costs_are_without_the_network_and_leave_it_as_it_was(denoising, timesteps):
    with counted(denoising.pipe.transformer) as calls:
        found = gpu.host_costs(denoising)
    assert len(calls) == 1  # that of which the output is taken
    assert "forward" not in vars(denoising.pipe.transformer)
    full = found["full_host_step_seconds"]
    assert found["added_host_seconds"] == full - found["uncached_host_step_seconds"]
    assert 0 < found["uncached_host_step_seconds"] < statistics.median(denoising.run().steps) / 2


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
    for case in cases:
        with case.apply(denoising.pipe), counted(denoising.pipe.transformer) as calls:
            steps, _ = denoising.run()
        # A gate or half of the blocks would show here too: the middle block's attention counts.
        assert len(calls) == len(case.full), case
        assert len(steps) == NUM_STEPS
    budgets = [len(case.full) for case in cases if case.method == OURS]
    assert budgets == list(SCALES["full"].budgets)


def test_the_transformer_is_as_before_after_every_case(denoising, cases):
    """cache-dit, for one, leaves the blocks in another order."""
    before, order = denoising.run(), list(denoising.pipe.transformer._modules)
    assert len(before.steps) == NUM_STEPS
    for case in cases:
        with case.apply(denoising.pipe):
            denoising.run()
        assert list(denoising.pipe.transformer._modules) == order, case
        assert "forward" not in vars(denoising.pipe.scheduler), case


def test_skipped_steps_are_made_of_six_anchors(timesteps):
    plan = gpu.six_anchors(20, timesteps)
    assert len(plan.full_steps) == 20
    assert max((row != 0).sum() for row in plan.weights) == 6
    np.testing.assert_allclose(plan.weights[~plan.full].sum(1), 1)


def test_timesteps_are_those_of_fluxs_pipeline(denoising, timesteps):
    """At 4,096 image tokens the shift is exp(1.15), that of FLUX.1-dev at 1024 pixels."""
    scheduler = gpu.FlowMatchEulerDiscreteScheduler(**gpu.SCHEDULER)
    assert denoising.pipe.scheduler.config == scheduler.config
    sigmas = np.linspace(1, 1 / NUM_STEPS, NUM_STEPS)
    for tokens, of in ((64**2, None), (64, timesteps)):
        scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens))
        shift = math.exp(1.15 if of is None else calculate_shift(tokens))
        expected = 1000 * shift / (shift + 1 / sigmas - 1)
        np.testing.assert_allclose(scheduler.timesteps.numpy(), expected, rtol=1e-5)
        if of is not None:
            np.testing.assert_allclose(of, expected, rtol=1e-5)


def test_the_full_scale_is_flux_1_dev():
    with torch.device("meta"):
        model = FluxTransformer2DModel(**SCALES["full"].flux)
    assert sum(weight.numel() for weight in model.parameters()) == 11_901_408_320
    scale = SCALES["full"]
    tokens = [(pixels // 16) ** 2 for pixels in scale.pixels]
    assert (tokens, scale.text_tokens, scale.dtype) == ([4096, 1024], 512, torch.bfloat16)


def test_wan_is_sampled_as_its_users_sample_it():
    """In bfloat16, as on a GPU: two calls a step, in which each token has a timestep."""
    scale = replace(SMALL, dtype=torch.bfloat16)
    denoising = gpu.Denoising(gpu.wan_pipeline(scale, "cpu"), scale.video, scale, "cpu")
    transformer, seen = denoising.pipe.transformer, []
    dtypes = {name: weight.dtype for name, weight in transformer.named_parameters()}
    assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert dtypes["blocks.0.attn1.to_q.weight"] == transformer.dtype == torch.bfloat16
    transformer.register_forward_hook(
        lambda module, arguments, named, output: seen.append((named["timestep"].shape, output[0])),
        with_kwargs=True,
    )
    denoising.run()
    assert len(seen) == 2 * NUM_STEPS
    for shape, output in seen:
        assert shape == (1, denoising.tokens) and output.shape == (1, 48, 3, 8, 12)
        assert 0.1 < float(output.std()) < 10
    (case,) = gpu.output_cases(denoising.timesteps[NUM_STEPS], 1, (FULL_STEPS,))
    computed = []
    transformer.proj_out.register_forward_hook(lambda *_: computed.append(None))
    with case.apply(denoising.pipe):
        steps, _ = denoising.run()
    assert len(computed) == 2 * FULL_STEPS and len(steps) == NUM_STEPS


def test_the_full_scale_is_wan_22_ti2v_5b():
    scale = SCALES["full"]
    with torch.device("meta"):
        model = WanTransformer3DModel(**scale.wan)
    assert sum(weight.numel() for weight in model.parameters()) == 4_999_787_712
    video = gpu.Denoising(gpu.wan_pipeline(SMALL, "cpu"), scale.video, SMALL, "cpu")
    assert video.tokens == 9 * 22 * 40


def test_random_weights_are_the_same_again_and_keep_states_finite(denoising):
    one, two = (
        gpu.random_transformer(
            FluxTransformer2DModel, SMALL.flux, torch.float32, "cpu"
        ).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.get_default_dtype() == torch.float32
    outputs = []
    hook = denoising.pipe.transformer.register_forward_hook(
        lambda m, a, out: outputs.append(out[0])
    )
    denoising.run()
    hook.remove()
    assert len(outputs) == NUM_STEPS
    assert all(0.1 < float(output.std()) < 10 for output in outputs)


@pytest.mark.parametrize("what", [BLOCKS, gpu.WHOLE])
def test_compiling_traces_and_leaves_no_trace(denoising, timesteps, what):
    """The backend "eager" compiles nothing, but torch traces and guards for it as for any other."""
    transformer = denoising.pipe.transformer
    (case,) = gpu.output_cases(timesteps, 1, (FULL_STEPS,))
    torch._dynamo.utils.counters.clear()
    with gpu.compiled(transformer, what, "eager"), case.apply(denoising.pipe):
        denoising.run()
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # The first single-stream block is given a part of a larger tensor, the others a whole one.
    assert graphs == (3 if what == BLOCKS else 1)
    for module in transformer.modules():
        assert module._compiled_call_impl is None
        assert not hasattr(module.forward, "_torchdynamo_orig_callable")


def test_a_cached_run_compiles_nothing_that_the_uncached_one_did_not(denoising, timesteps):
    (case,) = gpu.output_cases(timesteps, 1, (FULL_STEPS,))
    counters = torch._dynamo.utils.counters
    counters.clear()
    with gpu.compiled(denoising.pipe.transformer, BLOCKS, "eager"):
        denoising.run(3)
        before = dict(counters["stats"])
        with case.apply(denoising.pipe):
            denoising.run()
        assert before["unique_graphs"] == 3 and dict(counters["stats"]) == before
        assert not counters["graph_break"] and not counters["recompile_limit"]


def test_a_case_that_fails_has_a_row_and_the_rest_goes_on(tmp_path, capsys):
    table = Table(tmp_path / "t.csv", "cpu")
    session = Session(table, 1)

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate a lot")

    def see():  # what came before is in the file already
        rows = list(csv.DictReader((tmp_path / "t.csv").open()))
        assert [(row["method"], row["quantity"], row["note"]) for row in rows] == [
            ("one", "error", "OutOfMemoryError: CUDA out of memory.")
        ]
        return {"loop_seconds": 2.0}

    assert session.attempt({"method": "one"}, 1, fail) == {}
    assert session.attempt({"method": "two"}, 1, see) == {"loop_seconds": 2.0}
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert (rows[1]["method"], rows[1]["value"], rows[1]["unit"]) == ("two", "2.0", "s")
    assert "one" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_out(tmp_path):
    path = tmp_path / "t.csv"
    gpu.main(arguments(out=path, minutes=0))
    rows = list(csv.DictReader(path.open()))
    assert [(row["method"], row["quantity"]) for row in rows] == [(UNCACHED, "left_out")]
    assert rows[0]["note"].startswith("no time: ")
    session = Session(Table(None, "cpu"), 1)
    assert session.attempt({}, 59, lambda: {"value": 1.0})
    assert not session.attempt({}, 61, lambda: {"value": 1.0})


@pytest.mark.parametrize(
    ("first", "models"), [(8, [FLUX, FLUX, QWEN, WAN]), (9, [FLUX, QWEN, WAN]), (10, [FLUX, WAN])]
)
def test_a_run_from_a_later_number_measures_that_beside_the_uncached_run(
    tmp_path, monkeypatch, first, models
):
    """Each transformer is made when no other is left, which would count for its memory."""
    random_transformer, alive = gpu.random_transformer, []

    def alone(*arguments):
        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        made = random_transformer(*arguments)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(gpu, "random_transformer", alone)
    path = tmp_path / "t.csv"
    gpu.main(arguments(out=path, first=first))
    rows = list(csv.DictReader(path.open()))
    assert "error" not in {row["quantity"] for row in rows}
    loops = [(row["model"], row["method"]) for row in rows if row["quantity"] == "loop_seconds"]
    rest = [(model, method) for model in models[1:] for method in (UNCACHED, OURS)]
    # The whole transformer compiled is measured again without a cache.
    again = [(FLUX, gpu.AGAIN)] if first == 8 else []
    assert loops == [(FLUX, UNCACHED), *rest[: 2 * len(again)], *again, *rest[2 * len(again) :]]


def test_targets_tell_what_is_missed():
    def rows(method, tap, full_steps=7, **values):
        of = {"model": "M", "image_tokens": 4096, "compiled": "no", "method": method, "tap": tap,
              "full_steps": full_steps}  # fmt: skip
        return [of | {"quantity": k, "value": v} for k, v in values.items()]

    costs = {"skipped_step_seconds": 1.0, "added_memory_mb": 7.0}
    made = rows(OURS, "output", share_of_ideal=0.98, added_memory_share=0.02)
    made += rows(OURS, "output", 20, share_of_ideal=0.99, share_of_ideal_by_both=0.97,
                 added_memory_share=0.0)  # fmt: skip
    made += rows(OURS, "output", "", added_host_share=0.0005, full_added_waits=0.0,
                 skipped_added_waits=1.0)  # fmt: skip
    made += rows("TaylorSeer-1", "modules", **costs)
    made += rows("diffusers TaylorSeer-1", "modules", 8, **costs | {"added_memory_mb": 6.0})
    made += rows("TaylorSeer-1", "hidden", error=math.nan)
    lines = gpu.targets(pd.DataFrame(made))
    assert [line.split(":")[0] for line in lines] == [
        "met", "MISSED", "MISSED", "met", "met", "met", "MISSED", "met", "MISSED"
    ]  # fmt: skip
    assert "0.02, target 0.01" in lines[1] and "0.97, target 0.98" in lines[2]
    assert "skipped step waits" in lines[6] and "added_memory_mb" in lines[8]


def test_a_table_is_shown_again_from_its_file(made, capsys):
    gpu.main(argparse.Namespace(show=made))
    shown = capsys.readouterr().out.splitlines()
    assert (
        sum(OURS in line and line.split()[0] in ("Flux", "QwenImage", "Wan") for line in shown) == 9
    )
    outcomes = [line for line in shown if line.startswith(("met: ", "MISSED: "))]
    assert len(outcomes) == 2 * 9 + 3 * 3 + 2


def test_the_full_scale_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        gpu.main(arguments(scale="full"))


def test_devices_are_compared_on_the_embedded_model(monkeypatch):
    """Here both are the CPU, so all must be equal; the figures are those of any two devices."""
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_workflow, "NUM_STEPS", 10)
    monkeypatch.setattr(gpu_workflow, "FULL_STEPS", 4)
    monkeypatch.setattr(gpu_workflow, "TAYLORSEER_STEPS", 4)
    monkeypatch.setattr(gpu_workflow, "IMAGES", 1)
    table = Table(None, "cpu")
    gpu_workflow.compare_devices(table, "cpu")
    frame = table.frame()
    assert set(frame.image_tokens) == {64} and set(frame.text_tokens) == {24}
    kept = frame[frame.quantity == "equal_to_the_last_bit"]
    assert len(kept) == 4 and (kept.value == 1).all()
    quality = frame[frame.quantity == "psnr_to_the_full_run_on_cpu_db"]
    assert len(quality) == 4 and quality.value.between(15, 80).all()
    a, b = np.zeros((1, 3, 4, 4)), np.full((1, 3, 4, 4), 1 / 255)
    found = gpu_workflow.beside((a + 2, b), (a + 1, a))
    assert found["psnr_db"] == pytest.approx(20 * math.log10(255))
    assert found["relative_error_of_latents"] == 1 and found["equal_to_the_last_bit"] == 0


def test_leases_of_one_gpu_do_not_overlap(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: Test (UUID: GPU-00000000-0000-0000-0000-benchmark)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    table = Table(None, "cpu")
    gpu_workflow.leases(table)
    found = table.frame().set_index("quantity").value
    assert found["gap_seconds"] >= 0 and found["overlap"] == 0
    assert found["same_device"] == 1 and found["decided_for_the_gpu"] == 1


def test_the_public_names_suffice():
    """What is measured is what users call: nothing of eigencache is imported but the package."""
    for module in (gpu, gpu_workflow):
        for value in vars(module).values():
            assert value is eigencache or not getattr(value, "__module__", "").startswith(
                "eigencache"
            )
