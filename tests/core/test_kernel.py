"""The kernel: it is the second moment it says, runs merge in any split; what is made of it."""

import copy
import dataclasses
import re
import warnings
from itertools import pairwise, permutations
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache import _files as files
from eigencache.kernel import Kernel, KernelError, KernelUse, Kind, step_sizes
from eigencache.methods import METHODS

STEPS = 6
TIMESTEPS = flow_timesteps(STEPS)
RUNS = random_trajectories(TIMESTEPS, runs=7, size=5, roughness=1.0)


def identity(**changes) -> Kernel:
    good = {"sums": {"a": np.eye(STEPS)}, "runs": 1, "timesteps": TIMESTEPS, "tap": "output"}
    return Kernel(**good | changes)


def test_responses_add_up_and_are_read_at_other_timesteps():
    seen = np.zeros((3, STEPS))
    seen[:, 2], seen[:, 3] = (2, -4, 18), (1, -2, 9)  # each time a pull of -2 and a scatter of 3
    one = identity(responses=seen)
    both = one + one + identity()
    assert np.array_equal(both.responses, 2 * seen)
    for kernel in (
        one,
        both,
        one.at(TIMESTEPS[::-1]),
        one.at((TIMESTEPS[1:] + TIMESTEPS[:-1]) / 2),
    ):
        pull, scatter = kernel.response
        assert np.allclose(pull, -2) and np.allclose(scatter, 3)
        assert len(pull) == len(scatter) == len(kernel.timesteps)
    for kernel in (identity(), identity(responses=np.zeros((3, STEPS)))):
        assert not np.any(kernel.response)
    for wrong in (seen[:2], seen[:, 1:], np.full_like(seen, np.nan)):
        with pytest.raises(KernelError, match="`responses` must be 3 x"):
            identity(responses=wrong)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({"g": 1.0}, {"g": 3.0}, {"g": [1.0, 3.0]}),
        ({"g": [1.0, 2.0]}, {"g": 3}, {"g": [1.0, 3]}),
        ({"g": 2}, {"g": 2}, {"g": 2}),
        ({"n": "bad", "s": 2}, {"n": "worse", "s": 2}, {"s": 2}),
        ({"g": 1.0, "s": 2}, {"s": 2}, {"s": 2}),
    ],
)
def test_a_sum_knows_what_both_were_called_with(one, other, both):
    a, b = identity(arguments=one), identity(arguments=other)
    assert dict((a + b).arguments) == dict((b + a).arguments) == both


def test_kernels_of_other_step_sizes_do_not_merge():
    one, sizes = identity(), step_sizes(TIMESTEPS)
    assert (one + identity(step_sizes=1.0001 * sizes)).runs == 2  # by rounding
    with pytest.raises(KernelError, match="kernels differ in their step sizes"):
        one + identity(step_sizes=1.1 * sizes)


def test_a_kernel_read_at_other_steps_does_not_know_how_these_are_called():
    told = {"num_inference_steps": STEPS, "height": 64, "guidance_scale": 3.0}
    kernel = identity(arguments=told)
    assert kernel.at(TIMESTEPS).arguments == told
    assert kernel.at(flow_timesteps(4)).arguments == {"guidance_scale": 3.0}


def test_what_lies_between_the_steps_of_a_kernel_is_not_known():
    kernel = Kernel.of_run({"output": RUNS[0]}, TIMESTEPS, tap="output")
    more = np.sort(np.append(TIMESTEPS, (TIMESTEPS[1:] + TIMESTEPS[:-1]) / 2))[::-1]
    read = kernel.at(more).matrix()
    np.testing.assert_allclose(read[::2, ::2], kernel.matrix(), rtol=1e-9, atol=1e-12)
    assert (np.linalg.eigvalsh(read)[1:] > 0).all()
    assert np.linalg.matrix_rank(read, 1e-9) > np.linalg.matrix_rank(kernel.matrix(), 1e-9)


def test_the_error_at_more_steps_than_the_kernel_has_is_not_predicted():
    """It would be as if all between the kernel's steps were known: it was off by 1000 times."""
    kernel = Kernel.of_run(
        {"output": RUNS[0]}, TIMESTEPS, tap="output", step_sizes=step_sizes(TIMESTEPS)
    )
    for steps in (4, STEPS, 12):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            plan = METHODS["EigenCache-optimal"].plan(3, flow_timesteps(steps), kernel)
        assert np.isnan(plan.predicted_error) == (steps > STEPS) == len(said)


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


def test_kernels_of_single_runs_merge_in_any_order_and_nesting():
    whole = kernel_of(RUNS[:5], TIMESTEPS, ("a", "b"))
    singles = [kernel_of(RUNS[[i]], TIMESTEPS, ("a", "b")) for i in range(5)]
    for a, b, c, d, e in list(permutations(singles))[::11]:
        for merged in ((((a + b) + c) + d) + e, (a + b) + (c + (d + e)), a + (b + (c + (d + e)))):
            assert merged.runs == 5
            for stream in whole.streams:
                assert np.allclose(merged.sums[stream], whole.sums[stream], rtol=1e-13, atol=1e-15)


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
        ({"runs": 10**400}, "more than a float64 can count"),
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
    [
        ({"runs": '"many"'}, "one run"),
        ({"runs": "many"}, "not a valid kernel"),
        ({"runs": "0"}, "one run"),
        ({"runs": "1", "source": '{"a": 1}'}, "`source` must map text to text"),
        ({"runs": "1", "source": "[" * 2000}, "recursion"),
        ({}, "runs"),
    ],
)
def test_a_file_with_wrong_metadata_is_named(tmp_path, metadata, message):
    path = tmp_path / "odd.safetensors"
    arrays = {"sums/a": np.eye(STEPS), "timesteps": TIMESTEPS}
    rest = {"sums": '["a"]', "tap": '"output"', "features": '"full"', "normalisation": '"cosine"'}
    files.write_arrays(
        path, arrays, "eigencache-kernel-2", rest | {"model": "null", "source": "{}"} | metadata
    )
    with pytest.raises(KernelError, match=rf"odd\.safetensors.*{message}"):
        Kernel.load(path)


@pytest.mark.parametrize("timesteps", [np.full(STEPS, np.nan), np.ones((STEPS, 1))])
def test_timesteps_that_are_no_finite_vector_are_refused(timesteps):
    with pytest.raises(KernelError, match="`timesteps` must be a vector of finite numbers"):
        Kernel({"a": np.eye(STEPS)}, 1, timesteps, "output")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    identity().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KernelError, match=r"cut\.safetensors: damaged"):
        Kernel.load(path)


# ---- What is done to a kernel before use

LONG = 12  # more steps than the polynomials of smoothing have degrees
LONGER = flow_timesteps(LONG)
TWO = kernel_of(random_trajectories(LONGER, runs=7, roughness=0.5), LONGER, ("a", "b"))


def test_a_kernel_of_full_rank_is_as_it_was():
    same, energy = TWO.truncated(LONG)
    assert energy == pytest.approx(1, abs=1e-14)
    for stream in TWO.streams:
        assert np.allclose(same.matrix(stream), TWO.matrix(stream), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("rank", range(1, LONG + 1))
def test_a_truncated_kernel_has_the_leading_eigenpairs(rank):
    cut, energy = TWO.truncated(rank)
    kept = whole = 0
    for stream in TWO.streams:
        values, vectors = np.linalg.eig(TWO.sums[stream])
        order = np.argsort(-values)
        expected = np.zeros((LONG, LONG))
        for i in order[:rank]:
            expected += values[i] * np.outer(vectors[:, i], vectors[:, i])
            kept += values[i]
        whole += values.sum()
        assert np.allclose(cut.sums[stream], expected, rtol=1e-9, atol=1e-10)
        assert np.linalg.matrix_rank(cut.sums[stream]) == rank
        mine = np.linalg.eigvalsh(cut.sums[stream])[::-1]
        assert np.allclose(mine, [*values[order[:rank]], *[0] * (LONG - rank)], atol=1e-10)
    assert energy == pytest.approx(kept / whole, rel=1e-12)
    assert cut.runs == TWO.runs


def test_truncation_keeps_more_energy_with_every_eigenpair():
    energies = [TWO.truncated(rank)[1] for rank in range(1, LONG + 1)]
    assert all(0 < less < more <= 1 + 1e-12 for less, more in pairwise(energies))


@pytest.mark.parametrize("rank", [0, LONG + 1])
def test_a_rank_beyond_the_steps_is_refused(rank):
    with pytest.raises(KernelError, match=f"between 1 and {LONG}, got {rank}"):
        TWO.truncated(rank)


def test_a_shared_kernel_has_the_mean_in_every_stream():
    shared = TWO.shared()
    assert shared.streams == TWO.streams
    mean = (TWO.matrix("a") + TWO.matrix("b")) / 2
    for stream in shared.streams:
        assert np.allclose(shared.matrix(stream), mean, rtol=1e-14)
    assert np.allclose(shared.matrix(), TWO.matrix(), rtol=1e-14)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_smoothing_projects_every_feature_onto_polynomials_in_the_timestep(degree):
    runs = random_trajectories(LONGER, runs=3, size=5, roughness=0.5)
    fitted = [  # each number of each run by itself, by least squares
        np.stack([np.polyval(np.polyfit(LONGER, run[:, d], degree), LONGER) for d in range(5)], 1)
        for run in runs
    ]
    rough, smooth = kernel_of(runs, LONGER), kernel_of(fitted, LONGER)
    for share in (0.0, 0.3, 1.0):
        expected = (1 - share) * rough.matrix() + share * smooth.matrix()
        mine = rough.smoothed(share, degree).matrix()
        assert np.allclose(mine, expected, rtol=1e-7, atol=1e-9)


def test_smoothing_leaves_polynomials_as_they_are():
    timesteps = flow_timesteps(20)
    powers = np.vander(timesteps / 1000, 9)  # up to the eighth
    draw = np.random.default_rng(0)
    kernel = kernel_of([powers @ draw.normal(size=(9, 4)) for _ in range(3)], timesteps)
    assert np.allclose(kernel.smoothed(1.0).matrix(), kernel.matrix(), rtol=1e-9)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_smoothness_is_a_share(share):
    with pytest.raises(KernelError, match="must lie between 0 and 1"):
        TWO.smoothed(share)


# ---- At other timesteps


def waves(timesteps, runs=6, size=40):
    """Features that are smooth in the timestep, float64 `[runs, T, size]`."""
    return random_trajectories(timesteps, runs, size, roughness=0)


def smooth_kernel(timesteps, **kept):
    return kernel_of(waves(timesteps), timesteps, **kept)


@pytest.mark.parametrize(
    "timesteps",
    [np.linspace(1, 0.1, 8), np.linspace(3000, 0, 50), flow_timesteps(50)[:8], [-900.0, -950.0]],
    ids=["sigmas", "above", "before", "below"],
)
def test_timesteps_of_which_it_says_nothing_are_refused(timesteps):
    kernel = smooth_kernel(flow_timesteps(50)[10:])
    with pytest.raises(KernelError, match=r"is of timesteps .* and says nothing of .*: calibrate"):
        kernel.at(timesteps)


@pytest.mark.parametrize("matrix", [-np.eye(4), np.ones((4, 4)) - np.eye(4)], ids=str)
def test_what_is_no_second_moment_is_refused(matrix):
    with pytest.raises(KernelError, match="stream 'a': not the second moments of any features"):
        Kernel({"a": matrix}, 1, flow_timesteps(4), "output")


def test_at_its_own_timesteps_a_kernel_is_itself():
    kernel = smooth_kernel(flow_timesteps(50), step_sizes=np.arange(50.0), switches=(3,))
    same = kernel.at(flow_timesteps(50))
    assert np.array_equal(same.matrix(), kernel.matrix())
    assert np.array_equal(same.step_sizes, kernel.step_sizes) and same.switches == (3,)
    assert np.array_equal(kernel.at(kernel.timesteps, np.ones(50)).step_sizes, np.ones(50))


@pytest.mark.parametrize(
    "timesteps",
    [flow_timesteps(28), flow_timesteps(20), flow_timesteps(100), flow_timesteps(50, shift=1.5),
     flow_timesteps(50)[-30:], flow_timesteps(4)],
    ids=["28", "20", "100", "shift", "tail", "4"],
)  # fmt: skip
def test_read_at_other_timesteps_it_is_as_calibrated_there(timesteps):
    read = smooth_kernel(flow_timesteps(50)).at(timesteps)
    expected = smooth_kernel(timesteps)
    assert np.array_equal(read.timesteps, timesteps)
    largest = np.abs(expected.matrix()).max()
    assert np.allclose(read.matrix(), expected.matrix(), atol=2e-3 * largest)
    assert np.linalg.eigvalsh(read.matrix()).min() > -1e-12 * largest
    assert read.runs == expected.runs


def test_a_rough_kernel_stays_positive_semi_definite():
    draw = np.random.default_rng(0)
    root = draw.normal(size=(20, 20))
    kernel = Kernel({"a": root @ root.T}, 1, flow_timesteps(20), "output")
    for timesteps in (flow_timesteps(33), flow_timesteps(7, shift=1.0)):
        values = np.linalg.eigvalsh(kernel.at(timesteps).matrix())
        assert values.min() >= -1e-10 * values.max()


def test_step_sizes_of_euler_are_read_as_they_are():
    def sizes(timesteps):
        return np.diff(np.append(timesteps / 1000, 0))

    kernel = smooth_kernel(flow_timesteps(50), step_sizes=sizes(flow_timesteps(50)))
    for other in (flow_timesteps(28), flow_timesteps(50)[-20:], flow_timesteps(50, shift=1.2)):
        assert np.allclose(kernel.at(other).step_sizes, sizes(other), rtol=1e-6, atol=1e-9)
    assert smooth_kernel(flow_timesteps(50)).at(flow_timesteps(28)).step_sizes is None
    given = kernel.at(flow_timesteps(28), np.arange(28.0))
    assert np.array_equal(given.step_sizes, np.arange(28.0))


def test_the_last_step_size_is_kept_where_the_timesteps_end_at_zero():
    """Many samplers of noise prediction end at timestep 0, and their last step moves too."""
    timesteps = np.linspace(980, 0, 50)
    kernel = smooth_kernel(timesteps, step_sizes=-np.linspace(1, 0.5, 50))
    read = kernel.at(timesteps[::2])
    assert read.step_sizes[-1] < -0.4
    assert read.step_sizes.sum() == pytest.approx(kernel.step_sizes.sum(), rel=0.02)


def test_switches_move_to_the_first_step_beyond():
    kernel = smooth_kernel(flow_timesteps(50), switches=(10, 30))
    other = flow_timesteps(28)
    found = kernel.at(other).switches
    assert found == tuple(
        next(s for s, t in enumerate(other) if t <= kernel.timesteps[switch]) for switch in (10, 30)
    )
    assert kernel.at(flow_timesteps(50)[35:]).switches == ()  # the tail begins beyond


@pytest.mark.parametrize(
    ("own", "new", "message"),
    [
        (flow_timesteps(3), flow_timesteps(5), "a kernel of 3 timesteps, 3 of them different"),
        (np.repeat(flow_timesteps(4), 2), flow_timesteps(5), r"8 timesteps, 4 of them .*\(Heun\)"),
        (flow_timesteps(8), [1.0, np.nan], "must be a vector of finite numbers"),
        (flow_timesteps(8), np.ones((2, 2)), "must be a vector of finite numbers"),
    ],
)
def test_what_cannot_be_read_is_refused(own, new, message):
    with pytest.raises(KernelError, match=message):
        smooth_kernel(own).at(new)


BELONGS = {
    "arguments": {"guidance_scale": 3.5, "flag": True, "text": "x"},
    "scheduler": "DDIMScheduler", "pipeline": "FluxPipeline",
    "step_sizes": np.linspace(-1, -0.1, LONG), "switches": (4,),
}  # fmt: skip


def test_what_a_kernel_belongs_to_is_saved(tmp_path):
    before = smooth_kernel(LONGER, **BELONGS)
    before.save(tmp_path / "kernel.safetensors")
    for after in (
        Kernel.load(tmp_path / "kernel.safetensors"), copy.deepcopy(before),
        ForkingPickler.loads(ForkingPickler.dumps(before)),
    ):  # fmt: skip
        for name, value in BELONGS.items():
            assert np.all(getattr(after, name) == value)
        assert np.array_equal(after.matrix(), before.matrix())
        assert not after.step_sizes.flags.writeable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_sizes": np.ones(3)}, f"`step_sizes` must be {LONG} finite numbers"),
        ({"step_sizes": np.full(LONG, np.inf)}, "`step_sizes` must be"),
        ({"switches": (LONG,)}, f"not all among {LONG} steps"),
        ({"arguments": {"image": (1,)}}, "`arguments` must map"),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, message):
    with pytest.raises(KernelError, match=message):
        smooth_kernel(LONGER, **BELONGS | changes)


@pytest.mark.parametrize("changes", [{"switches": (5,)}, {"scheduler": "Other"}])
def test_kernels_of_other_samplers_do_not_merge(changes):
    with pytest.raises(KernelError, match=f"kernels differ in {next(iter(changes))}"):
        smooth_kernel(LONGER, **BELONGS) + smooth_kernel(LONGER, **BELONGS | changes)


# ---- Which kernel a method wants


def test_use_by_default_changes_nothing():
    used = KernelUse().of(TWO)
    for stream in TWO.streams:
        assert np.array_equal(used.matrix(stream), TWO.matrix(stream))
    assert used.source == TWO.source


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rank": 2}, TWO.truncated(2)[0]),
        ({"shared": True}, TWO.shared()),
        ({"smooth": 0.4}, TWO.smoothed(0.4)),
        ({"smooth": 0.4, "shared": True, "rank": 3}, TWO.smoothed(0.4).shared().truncated(3)[0]),
    ],
)
def test_use_does_what_its_options_say_and_tells(options, expected):
    used = KernelUse(**options).of(TWO)
    for stream in TWO.streams:
        assert np.allclose(used.matrix(stream), expected.matrix(stream), rtol=1e-12, atol=1e-15)
        assert not np.allclose(used.matrix(stream), TWO.matrix(stream))
    assert set(used.source) == set(options)


def test_the_energy_of_a_truncated_kernel_is_told():
    energy = TWO.truncated(2)[1]
    assert KernelUse(rank=2).of(TWO).source["rank"] == f"2, with {energy:.6f} of the energy"


def test_smoothing_comes_before_truncation():
    used = KernelUse(smooth=0.5, rank=1).of(TWO)
    assert all(np.linalg.matrix_rank(used.matrix(stream)) == 1 for stream in used.streams)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "token-mean"}, "holds full second-moment, the method needs token-mean"),
        ({"normalisation": "cosine"}, "the method needs full cosine"),
        ({"runs": 6}, "is of 7 runs, the method needs 6"),
        ({"rank": LONG + 1}, "rank must lie between"),
    ],
)
def test_a_kernel_of_another_kind_is_refused(options, message):
    with pytest.raises(KernelError, match=message):
        KernelUse(**options).of(TWO)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "full.second-moment"),
        ({"features": "token-mean", "normalisation": "cosine"}, "token-mean.cosine"),
        ({"runs": 4, "rank": 2, "shared": True, "smooth": 0.1}, "full.second-moment.4"),
    ],
)
def test_a_kind_names_what_must_be_calibrated_and_no_more(options, kind):
    made = KernelUse(**options).kind("output")
    assert str(made) == f"output.{kind}" and Kind.of(str(made)) == made


@pytest.mark.parametrize(
    "options",
    [
        {"features": "tokens"},
        {"normalisation": "cos"},
        {"runs": 0},
        {"runs": 2.5},
        {"rank": 0},
        {"rank": True},
        {"shared": "yes"},
        {"smooth": 1.1},
        {"smooth": -0.1},
        {"smooth": "0.1"},
    ],
)
def test_an_invalid_option_is_named(options):
    with pytest.raises(
        ValueError, match=rf"{next(iter(options))} must be.*{re.escape(repr(*options.values()))}"
    ):
        KernelUse(**options)
