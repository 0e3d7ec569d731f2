"""The plan: what it refuses, that it cannot change, and that files of it are whole or absent."""

import copy
import dataclasses
import errno
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from safetensors.numpy import save_file

from eigencache import _files as files
from eigencache.plan import Plan, PlanError
from eigencache.tokens import ClusCa, ToCa

FULL = [True, True, False, True, False]
TIMESTEPS = [1000.0, 900.0, 700.0, 400.0, 100.0]


def weights(**changes) -> np.ndarray:
    matrix = np.zeros((5, 5))
    matrix[2, [0, 1]] = -0.5, 1.5
    matrix[4, [1, 3]] = 0.25, 0.75
    for place, value in changes.items():
        matrix[tuple(map(int, place.strip("_").split("_")))] = value
    return matrix


def plan(**changes) -> Plan:
    good = {"full": FULL, "weights": weights(), "timesteps": TIMESTEPS, "tap": "output"}
    return Plan(**good | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full": []}, r"`full` must be a vector .* got shape \(0,\)"),
        ({"full": [FULL]}, r"`full` must be a vector .* got shape \(1, 5\)"),
        ({"weights": weights()[:4]}, r"`weights` must have shape \(5, 5\), got \(4, 5\)"),
        ({"streams": ["a", "b"]}, r"`weights` must have shape \(2, 5, 5\), got \(5, 5\)"),
        ({"weights": [weights()]}, r"`weights` must have shape \(5, 5\), got \(1, 5, 5\)"),
        ({"timesteps": TIMESTEPS[:4]}, r"`timesteps` must have shape \(5,\), got \(4,\)"),
        ({"streams": "aa", "weights": [weights()] * 2}, "stream names must differ"),
        ({"full": [False, *FULL[1:]], "weights": np.zeros((5, 5))}, "step 0 must be full"),
        ({"weights": weights(_2_1=np.nan)}, "`weights` must be finite"),
        ({"weights": weights(_2_1=np.inf)}, "`weights` must be finite"),
        ({"timesteps": [np.nan, *TIMESTEPS[1:]]}, "`timesteps` must be finite"),
        ({"weights": weights(_1_0=1)}, r"weights\[1, 0\] must be zero"),  # a full step's row
        ({"weights": weights(_4_2=1)}, r"weights\[4, 2\] must be zero"),  # over a skipped step
        ({"weights": weights(_2_3=1)}, r"weights\[2, 3\] must be zero"),  # over a later step
        (
            {"streams": "ab", "weights": [weights(), weights(_4_4=1)]},
            r"weights\[4, 4\] must be zero",
        ),
        ({"weights": weights(_2_0=0, _2_1=0)}, "step 2 is skipped and has no weights"),
        (
            {"streams": "ab", "weights": [weights(_4_1=0, _4_3=0)] * 2},
            "step 4 is skipped and has no weights",
        ),
        ({"refresh": ToCa()}, "at tap 'modules' only, not at 'output'"),
    ],
)
def test_a_malformed_plan_is_refused_by_name(changes, message):
    with pytest.raises(PlanError, match=message):
        plan(**changes)


def test_a_stream_may_be_computed_where_another_is_forecast():
    made = plan(streams="ab", weights=[weights(_2_0=0, _2_1=0), weights(_4_1=0, _4_3=0)])
    assert not made.weights_of("a")[2].any() and made.weights_of("b")[2].any()


def test_length_and_full_steps():
    assert len(plan()) == 5
    assert plan().full_steps == (0, 1, 3)


@pytest.mark.parametrize("name", ["full", "weights", "timesteps"])
def test_arrays_cannot_be_written_to(name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(plan(), name)[...] = 0


def test_attributes_cannot_be_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().tap = "modules"


def test_source_cannot_be_written_to():
    with pytest.raises(TypeError):
        plan(source={"a": "b"}).source["a"] = "c"


def test_a_plan_does_not_share_the_arrays_it_was_made_from():
    mine = weights()
    made = plan(weights=mine)
    mine[:] = 7
    assert np.array_equal(made.weights, weights())


def test_one_matrix_serves_every_stream():
    assert np.array_equal(plan().weights_of("whatever"), weights())


def test_each_stream_has_its_own_weights():
    other = weights(_2_1=9)
    made = plan(streams=["a", "b"], weights=[weights(), other])
    assert np.array_equal(made.weights_of("b"), other)
    with pytest.raises(PlanError, match="no weights for stream 'c'"):
        made.weights_of("c")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "Flux-12", "source": {"schedule": "Interval(…)", "kernel": "16 runs"}},
        {"streams": ["x.0:a", "y.1"], "weights": [weights(), weights(_2_1=9)], "tap": "modules"},
        {"streams": "ab", "weights": [weights(_2_0=0, _2_1=0), weights(_4_1=0, _4_3=0)]},
        {"tap": "modules", "refresh": ToCa(0.2, layer_weight=0)},
        {"tap": "modules", "refresh": ClusCa(4, 2, 0.01)},
        {"weights": np.asfortranarray(weights())},
        {"weights": np.repeat(weights(), 2, axis=1)[:, ::2]},
    ],
)
def test_a_saved_plan_loads_as_it_was(tmp_path, changes):
    before = plan(**changes)
    before.save(tmp_path / "plan.safetensors")
    after = Plan.load(tmp_path / "plan.safetensors")
    for field in dataclasses.fields(Plan):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, np.ndarray):
            assert old.dtype == new.dtype
            assert np.array_equal(old, new)
        else:
            assert old == new or (old != old and new != new)  # nan


def truncated(path):
    plan().save(path)
    path.write_bytes(path.read_bytes()[:-20])


def garbage(path):
    path.write_bytes(b"this is no plan at all" * 10)


def empty(path):
    path.write_bytes(b"")


def of_another_format(path):
    files.write_arrays(path, {"x": np.zeros(2)}, "eigencache-kernel-2", {})


def without_a_format(path):
    save_file({"x": np.zeros(2)}, path)


def without_weights(path):
    plan().save(path)
    arrays, metadata = files.read_arrays(path, Plan.FORMAT, PlanError)
    del arrays["weights"]
    files.write_arrays(path, arrays, Plan.FORMAT, metadata)


def without_its_tap(path):
    plan().save(path)
    arrays, metadata = files.read_arrays(path, Plan.FORMAT, PlanError)
    del metadata["tap"]
    files.write_arrays(path, arrays, Plan.FORMAT, metadata)


def of_an_unknown_rule(path):
    plan(tap="modules", refresh=ToCa()).save(path)
    respell(path, "ToCa", "ToGo")


def of_an_unknown_option(path):
    plan(tap="modules", refresh=ToCa()).save(path)
    respell(path, "ratio", "ration")


def of_a_bad_option(path):
    plan(tap="modules", refresh=ToCa(0.5)).save(path)
    respell(path, "0.5,", "5,")


def respell(path, old, new):
    arrays, metadata = files.read_arrays(path, Plan.FORMAT, PlanError)
    assert old in metadata["refresh"]
    metadata["refresh"] = metadata["refresh"].replace(old, new, 1)
    files.write_arrays(path, arrays, Plan.FORMAT, metadata)


def of_a_prediction_that_is_no_number(path):
    plan().save(path)
    arrays, metadata = files.read_arrays(path, Plan.FORMAT, PlanError)
    metadata["predicted_psnr"] = '"many"'
    files.write_arrays(path, arrays, Plan.FORMAT, metadata)


def acausal(path):
    plan().save(path)
    arrays, metadata = files.read_arrays(path, Plan.FORMAT, PlanError)
    arrays["weights"] = arrays["weights"] + 1
    files.write_arrays(path, arrays, Plan.FORMAT, metadata)


@pytest.mark.parametrize(
    "spoil",
    [
        truncated, garbage, empty, of_another_format, without_a_format,
        without_weights, without_its_tap, acausal, of_an_unknown_rule, of_an_unknown_option,
        of_a_bad_option, of_a_prediction_that_is_no_number,
    ],
)  # fmt: skip
def test_a_spoilt_file_is_named(tmp_path, spoil):
    path = tmp_path / "spoilt.safetensors"
    spoil(path)
    with pytest.raises(PlanError, match=r"spoilt\.safetensors"):
        Plan.load(path)


BELONGS = {
    "method": "EigenCache", "predicted_psnr": 31.25, "predicted_error": 0.015,
    "arguments": {"guidance_scale": 3.5, "height": 64, "negative_prompt": "x", "flag": True},
    "scheduler": "FlowMatchEulerDiscreteScheduler", "pipeline": "FluxPipeline",
}  # fmt: skip


def fields_of(made):
    return {name: getattr(made, name) for name in BELONGS}


def test_what_a_plan_belongs_to_is_saved(tmp_path):
    before = plan(**BELONGS)
    before.save(tmp_path / "plan.safetensors")
    assert fields_of(Plan.load(tmp_path / "plan.safetensors")) == BELONGS
    assert before.predicted_psnr == 31.25 and before.predicted_error == 0.015
    plan().save(tmp_path / "plan.safetensors")
    found = Plan.load(tmp_path / "plan.safetensors")
    assert np.isnan(found.predicted_psnr) and np.isnan(found.predicted_error)
    assert (found.method, found.scheduler, found.pipeline, found.arguments) == (None,) * 3 + ({},)


@pytest.mark.parametrize("psnr", [float("inf"), 0.0])
def test_any_prediction_is_saved(tmp_path, psnr):
    plan(predicted_psnr=psnr).save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").predicted_psnr == psnr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predicted_psnr": "31"}, "`predicted_psnr` must be a number, got '31'"),
        ({"predicted_error": True}, "`predicted_error` must be a number"),
        ({"arguments": {"image": [1]}}, r"`arguments` must map .* got 'image': \[1\]"),
        ({"scheduler": 3}, "`scheduler` must be text or None, got 3"),
        ({"method": b"x"}, "`method` must be text or None"),
    ],
)
def test_a_field_of_another_kind_is_named(changes, message):
    with pytest.raises(PlanError, match=message):
        plan(**changes)


@pytest.mark.parametrize("field", ["arguments", "method", "predicted_psnr", "scheduler"])
def test_a_file_with_a_field_of_another_kind_is_named(tmp_path, field):
    path = tmp_path / "odd.safetensors"
    plan().save(path)
    arrays, metadata = files.read_arrays(path, Plan.FORMAT, PlanError)
    metadata[field] = "[1]"
    files.write_arrays(path, arrays, Plan.FORMAT, metadata)
    with pytest.raises(PlanError, match=r"odd\.safetensors: not a valid plan"):
        Plan.load(path)


def through_a_pickle(made):
    return ForkingPickler.loads(ForkingPickler.dumps(made))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, through_a_pickle])
def test_a_plan_can_be_copied_and_pickled(again):
    before = plan(source={"kernel": "x"}, tap="modules", refresh=ToCa(0.3), **BELONGS)
    after = again(before)
    assert after is not before and fields_of(after) == BELONGS
    assert (after.source, after.refresh, after.tap) == ({"kernel": "x"}, ToCa(0.3), "modules")
    for name in ("full", "weights", "timesteps"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert not getattr(after, name).flags.writeable
    with pytest.raises(TypeError):
        after.source["kernel"] = "y"


def test_a_plan_is_shown_in_a_line():
    assert repr(plan()) == "Plan(3 of 5 steps full, tap='output')"
    shown = repr(plan(**BELONGS))
    assert shown == (
        "Plan(3 of 5 steps full, tap='output', method='EigenCache', predicted_psnr=31.2)"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Plan.load(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_old_plan_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.safetensors"
    plan(source={"which": "old"}).save(path)

    def disk_is_full(arrays, part, metadata):
        part.write_bytes(b"half a pl")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        plan(source={"which": "new"}).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert Plan.load(path).source["which"] == "old"


def test_saving_below_a_file_fails_and_leaves_it(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        plan().save(tmp_path / "file" / "plan.safetensors")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_sampler_that_the_plan_was_made_for_is_accepted():
    plan().check_timesteps(np.asarray(TIMESTEPS, np.float32))


def test_another_number_of_steps_is_refused():
    with pytest.raises(PlanError, match="5 steps, the sampler takes 4: design it again from its k"):
        plan().check_timesteps(TIMESTEPS[:4])


def test_the_first_other_timestep_is_named():
    with pytest.raises(PlanError, match="timestep 700 at step 2, the sampler is at 701"):
        plan().check_timesteps([1000, 900, 701, 402, 100])


def test_a_retimed_plan_keeps_its_steps_and_weights():
    other = [1000, 950, 800, 500, 150]
    before = plan(model="a model", source={"kernel": "ours"}, predicted_psnr=50, predicted_error=1)
    retimed = before.retimed(other)
    retimed.check_timesteps(other)
    with pytest.raises(PlanError, match="the scheduler, its shift or the resolution differs"):
        retimed.check_timesteps(TIMESTEPS)
    assert retimed.full_steps == plan().full_steps and retimed.model == "a model"
    np.testing.assert_array_equal(retimed.weights, plan().weights)
    assert retimed.source == {"kernel": "ours", "retimed": "yes"}
    # These were of images at the old timesteps.
    assert np.isnan(retimed.predicted_psnr) and np.isnan(retimed.predicted_error)


def test_a_plan_is_not_retimed_to_another_number_of_steps():
    with pytest.raises(PlanError, match=r"`timesteps` must have shape \(5,\), got \(4,\)"):
        plan().retimed(TIMESTEPS[:4])
