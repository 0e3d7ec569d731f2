"""The kernel: it is the second moment it says, and runs may be summed in any split."""

import dataclasses

import numpy as np
import pytest
from conftest import flow_timesteps, kernel_of, random_trajectories

from eigencache import files
from eigencache.kernel import Kernel, KernelError

STEPS = 6
TIMESTEPS = flow_timesteps(STEPS)
RUNS = random_trajectories(TIMESTEPS, runs=7, size=5, roughness=1.0)


def identity(**changes) -> Kernel:
    good = {"sums": {"a": np.eye(STEPS)}, "runs": 1, "timesteps": TIMESTEPS, "tap": "output"}
    return Kernel(**good | changes)


def test_second_moment_is_the_mean_product_per_number():
    expected = np.zeros((STEPS, STEPS))
    for run in RUNS:
        for s in range(STEPS):
            for t in range(STEPS):
                expected[s, t] += sum(x * y for x, y in zip(run[s], run[t], strict=True)) / 5 / 7
    assert np.allclose(kernel_of(RUNS, TIMESTEPS).matrix("output"), expected, rtol=1e-13)


def test_cosine_is_the_mean_cosine():
    expected = np.zeros((STEPS, STEPS))
    for run in RUNS:
        for s in range(STEPS):
            for t in range(STEPS):
                lengths = np.sqrt((run[s] ** 2).sum() * (run[t] ** 2).sum())
                expected[s, t] += (run[s] * run[t]).sum() / lengths / 7
    kernel = kernel_of(RUNS, TIMESTEPS, normalisation="cosine")
    assert np.allclose(kernel.matrix("output"), expected, rtol=1e-13)


def test_a_run_of_float32_features_is_summed_in_float64():
    run = np.full((STEPS, 1), 1 + 2**-23, np.float32)
    kernel = Kernel.of_run({"a": run}, TIMESTEPS, tap="output")
    assert kernel.matrix("a")[0, 0] == (1 + 2**-23) ** 2


def test_no_stream_means_the_mean_of_all():
    kernel = kernel_of(RUNS, TIMESTEPS, streams=("a", "b", "c"))
    mean = (kernel.matrix("a") + kernel.matrix("b") + kernel.matrix("c")) / 3
    assert np.allclose(kernel.matrix(), mean, rtol=1e-14)


@pytest.mark.parametrize("normalisation", ["second-moment", "cosine"])
@pytest.mark.parametrize("split", range(1, 7))
def test_merging_any_split_gives_the_whole(normalisation, split):
    whole = kernel_of(RUNS, TIMESTEPS, normalisation=normalisation)
    first = kernel_of(RUNS[:split], TIMESTEPS, normalisation=normalisation)
    rest = kernel_of(RUNS[split:], TIMESTEPS, normalisation=normalisation)
    for merged in (first + rest, rest + first):
        assert merged.runs == whole.runs == 7
        assert np.allclose(merged.matrix("output"), whole.matrix("output"), rtol=1e-13, atol=1e-15)


def test_merging_keeps_what_describes_the_kernel():
    kept = {"tap": "modules", "features": "token-mean", "normalisation": "cosine"}
    one = identity(**kept, model="m", source={"prompts": "p"})
    merged = one + one
    for field in dataclasses.fields(Kernel):
        if field.name not in ("sums", "runs", "timesteps"):
            assert getattr(merged, field.name) == getattr(one, field.name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tap": "modules"}, "tap: 'output' and 'modules'"),
        ({"features": "token-mean"}, "features"),
        ({"normalisation": "cosine"}, "normalisation"),
        ({"model": "another"}, "model"),
        ({"sums": {"b": np.eye(STEPS)}}, "streams"),
        ({"timesteps": TIMESTEPS + 1}, "timesteps"),
    ],
)
def test_kernels_that_differ_are_not_merged(changes, message):
    with pytest.raises(KernelError, match=message):
        identity() + identity(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sums": {}}, "at least one stream"),
        ({"runs": 0}, "one run"),
        ({"normalisation": "cos"}, "'cos' is not in"),
        ({"sums": {"a": np.eye(5)}}, r"'a': shape \(5, 5\), not \(6, 6\)"),
        ({"sums": {"a": np.full((STEPS, STEPS), np.nan)}}, "'a': not finite"),
        ({"sums": {"a": np.triu(np.ones((STEPS, STEPS)))}}, "'a': not symmetric"),
    ],
)
def test_a_malformed_kernel_is_refused(changes, message):
    with pytest.raises(KernelError, match=message):
        identity(**changes)


def test_a_zero_feature_has_no_cosine():
    run = RUNS[0].copy()
    run[3] = 0
    with pytest.raises(KernelError, match="'a': a feature is zero"):
        Kernel.of_run({"a": run}, TIMESTEPS, "cosine", tap="output")


def test_a_zero_feature_has_a_second_moment():
    run = RUNS[0].copy()
    run[3] = 0
    assert (Kernel.of_run({"a": run}, TIMESTEPS, tap="output").matrix("a")[3] == 0).all()


@pytest.mark.parametrize("normalisation", ["second-moment", "cosine"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_feature_that_is_not_finite_is_refused(normalisation, value):
    run = RUNS[0].copy()
    run[2, 1] = value
    with pytest.raises(KernelError):
        Kernel.of_run({"a": run}, TIMESTEPS, normalisation, tap="output")


def test_an_unknown_stream_is_refused():
    with pytest.raises(KernelError, match="no stream 'b'"):
        identity().matrix("b")


def test_a_kernel_cannot_be_written_to():
    kernel = identity()
    with pytest.raises(ValueError, match="read-only"):
        kernel.sums["a"][0, 0] = 2
    with pytest.raises(TypeError):
        kernel.sums["b"] = np.eye(STEPS)


@pytest.mark.parametrize("normalisation", ["second-moment", "cosine"])
def test_a_saved_kernel_loads_as_it_was(tmp_path, normalisation):
    before = kernel_of(
        RUNS, TIMESTEPS, streams=("output", "sums/odd:name"), normalisation=normalisation,
        features="token-mean", tap="modules", model="m-1", source={"seed": "3"},
    )  # fmt: skip
    before.save(tmp_path / "kernel.safetensors")
    after = Kernel.load(tmp_path / "kernel.safetensors")
    assert set(after.streams) == set(before.streams)
    for stream in before.streams:
        assert np.array_equal(after.matrix(stream), before.matrix(stream))
    assert np.array_equal(after.timesteps, before.timesteps)
    for name in ("runs", "tap", "features", "normalisation", "model", "source"):
        assert getattr(after, name) == getattr(before, name)


def test_a_loaded_kernel_merges_with_one_in_memory(tmp_path):
    before = kernel_of(RUNS, TIMESTEPS, streams=("b.10", "b.9", "a"))
    before.save(tmp_path / "kernel.safetensors")
    merged = Kernel.load(tmp_path / "kernel.safetensors") + before
    assert merged.runs == 14
    assert np.array_equal(merged.sums["b.9"], 2 * before.sums["b.9"])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"runs": "many"}, "not a valid kernel"), ({"runs": "0"}, "one run"), ({}, "runs")],
)
def test_a_file_with_wrong_metadata_is_named(tmp_path, metadata, message):
    path = tmp_path / "odd.safetensors"
    arrays = {"sums/a": np.eye(STEPS), "timesteps": TIMESTEPS}
    rest = {"tap": "output", "features": "full", "normalisation": "cosine"}
    files.write_arrays(
        path, arrays, "eigencache-kernel-1", rest | {"model": "null", "source": "{}"} | metadata
    )
    with pytest.raises(KernelError, match=rf"odd\.safetensors.*{message}"):
        Kernel.load(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    identity().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KernelError, match=r"cut\.safetensors: damaged"):
        Kernel.load(path)
