"""Errors by step: measured against runs done by hand, predicted against the kernel's own runs."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    faulty_texts,
    flow_timesteps,
    kernel_of,
    random_trajectories,
    tiny_pipeline,
)

from eigencache.calibration._calls import called
from eigencache.calibration.recording import timesteps_of
from eigencache.calibration.sampler import image_seed, load_pipeline
from eigencache.design import forecast_errors, latents_errors
from eigencache.kernel import Kernel, KernelError, step_sizes
from eigencache.methods import METHODS, Gate, make_plan
from eigencache.plan import TAPS, Plan, PlanError
from eigencache.predictors import Kriging, Newton, Reuse, Taylor
from eigencache.runtime import cached
from eigencache.runtime._blocks import watching
from eigencache.runtime._taps import tensors
from eigencache.schedules import Steps
from eigencache.tokens import ToCa
from reproduction.figures import errors as figure
from reproduction.figures._common import looks, save
from reproduction.models import pipeline
from reproduction.stages import errors as stage
from reproduction.tables.tables import read_table

ROOT = Path(__file__).parents[2]
STEPS, SEED = 6, 7
SIZE = {"num_inference_steps": STEPS, "height": 16, "width": 16}
FULL = [0, 1, 3]


# ---- What is predicted


@pytest.mark.parametrize("predictor", [Kriging(2), Taylor(1), Reuse(), Newton(2)], ids=repr)
def test_prediction_is_the_mean_over_the_runs_of_the_kernel(predictor):
    timesteps = flow_timesteps(9)
    runs = random_trajectories(timesteps, runs=5)
    kernel = kernel_of(runs, timesteps)
    plan = make_plan(Steps([0, 1, 2, 5]), predictor, timesteps, kernel)
    sizes, missed, drifted = step_sizes(timesteps), [], []
    for features in runs:
        drift, after = np.zeros(features.shape[1]), []
        for step in range(9):
            error = np.zeros(features.shape[1])
            if not plan.full[step]:
                error = plan.weights[step] @ features - features[step]
            missed.append((step, (error**2).sum(), (features[step] ** 2).sum()))
            drift = drift + sizes[step] * error
            after.append((drift**2).mean())
        drifted.append(after)
    _, error, size = pd.DataFrame(missed).groupby(0, as_index=False).mean().to_numpy().T
    np.testing.assert_allclose(forecast_errors(plan, kernel.matrix()), np.sqrt(error / size))
    expected = np.sqrt(np.mean(drifted, axis=0))
    np.testing.assert_allclose(latents_errors(plan, kernel.matrix()), expected, atol=1e-12)
    told = stage.predicted(plan, kernel)
    np.testing.assert_array_equal(np.isnan(told["forecast"]), plan.full)
    np.testing.assert_allclose(told["latents"], expected, atol=1e-12)
    doubled = stage.predicted(plan, replace(kernel, step_sizes=2 * sizes))
    np.testing.assert_allclose(doubled["latents"], 2 * expected, atol=1e-12)


def test_nothing_is_predicted_of_other_taps_or_from_other_kernels():
    timesteps = flow_timesteps(9)
    runs = random_trajectories(timesteps)
    elsewhere = METHODS["TaylorSeer"].plan(4, timesteps)
    assert stage.predicted(elsewhere, kernel_of(runs, timesteps)) == {}
    plan = METHODS["Newton"].plan(4, timesteps)
    for kept in ({"normalisation": "cosine"}, {"tap": "hidden"}, {"features": "token-mean"}):
        with pytest.raises(KernelError, match="told from second moments of the output"):
            stage.predicted(plan, kernel_of(runs, timesteps, **kept))
    with pytest.raises(PlanError, match="made for 9 steps"):
        stage.predicted(plan, kernel_of(runs[:, :8], timesteps[:8]))


# ---- What is measured


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def call_of(index):
    draw = torch.Generator().manual_seed(index)
    return {
        **SIZE,
        "prompt_embeds": torch.randn(1, 3, 12, generator=draw),
        "pooled_prompt_embeds": torch.randn(1, 10, generator=draw),
    }


def features_of(pipe, tap, index):
    """Return the features of an undisturbed run: stream name to float64 `[T, D]`."""
    found = {}

    def keep(name, feature):
        record = found.setdefault(name, [])
        record.append(np.concatenate([part.numpy().ravel() for part in tensors(feature)]))

    with watching(pipe.transformer, tap, keep):
        called(pipe, call_of(index), image_seed(SEED, index))
    return {name: np.stack(record).astype(float) for name, record in found.items()}


@pytest.fixture(scope="module")
def timesteps(pipe):
    return timesteps_of(pipe, call_of(0))


@pytest.fixture(scope="module")
def plans(timesteps):
    plans = {tap: make_plan(Steps(FULL), Taylor(1), timesteps, tap=tap) for tap in TAPS}
    other = make_plan(Steps([0, 2, 3]), Reuse(), timesteps, tap="delta", gate=Gate())
    tokens = make_plan(Steps(FULL), Reuse(), timesteps, tap="modules", refresh=ToCa())
    return plans | {"gated": other, "tokens": tokens}


@pytest.fixture(scope="module")
def measured(pipe, plans):
    return dict(stage.measured(pipe, call_of(0), image_seed(SEED, 0), plans))


@pytest.mark.parametrize("label", [*TAPS, "gated"])
def test_forecasts_are_measured_on_the_features_of_the_full_run(pipe, plans, measured, label):
    plan = plans[label]
    features = features_of(pipe, plan.tap, 0)
    for step in range(STEPS):
        squares = np.zeros(2)
        for name, values in features.items():
            row = plan.weights_of(name)[step]
            if row.any():
                error = row @ values - values[step]
                squares += (error**2).sum(), (values[step] ** 2).sum()
        found = measured[label]["forecast"][step]
        if squares[1]:
            assert found == pytest.approx(np.sqrt(squares[0] / squares[1]), rel=1e-4)
        else:
            assert np.isnan(found) and plan.full[step]


def test_measured_forecasts_are_those_predicted_from_their_own_runs(pipe, plans, timesteps):
    """Of one run the mean is the run, and of more, weighted by size, the root of their mean."""
    runs = [features_of(pipe, "output", index) for index in range(3)]
    kernels = [Kernel.of_run(run, timesteps, tap="output") for run in runs]
    plan, found, sizes = plans["output"], [], []
    for index, (run, kernel) in enumerate(zip(runs, kernels, strict=True)):
        call, seed = call_of(index), image_seed(SEED, index)
        ((_, errors),) = stage.measured(pipe, call, seed, {"output": plan})
        alone = stage.predicted(plan, kernel)["forecast"]
        np.testing.assert_allclose(errors["forecast"], alone, rtol=1e-4)
        found.append(errors["forecast"])
        sizes.append((run["output"] ** 2).sum(1))
    together = stage.predicted(plan, kernels[0] + kernels[1] + kernels[2])["forecast"]
    mean = np.sqrt(np.average(np.square(found), axis=0, weights=sizes))
    np.testing.assert_allclose(mean, together, rtol=1e-4)


def test_latents_of_full_steps_at_the_start_agree_to_the_last_bit(measured, plans):
    for label, errors in measured.items():
        first = int(np.argmin(plans[label].full))  # the first that is skipped
        assert (errors["latents"][:first] == 0).all()
        assert (errors["latents"][first:] > 0).all()


@pytest.mark.parametrize("label", ["output", "modules", "gated", "tokens"])
def test_the_last_latents_are_those_of_the_image(pipe, plans, measured, label):
    seed = image_seed(SEED, 0)
    full = called(pipe, call_of(0), seed).images
    with cached(pipe, plans[label]):
        ours = called(pipe, call_of(0), seed).images
    expected = (ours - full).square().mean().sqrt().item()
    assert measured[label]["latents"][-1] == pytest.approx(expected, rel=1e-5)


def test_plans_that_recompute_tokens_have_no_forecasts(measured):
    assert np.isnan(measured["tokens"]["forecast"]).all()


def test_nothing_depends_on_which_plans_are_measured_together(pipe, plans, measured):
    alone = {"delta": plans["delta"]}
    ((_, errors),) = stage.measured(pipe, call_of(0), image_seed(SEED, 0), alone)
    for quantity, values in errors.items():
        np.testing.assert_array_equal(values, measured["delta"][quantity])


def test_features_are_dropped_when_no_plan_needs_them(plans):
    watch = stage.OpenLoop("output", {"a": plans["output"]})
    for step in range(STEPS):
        for passes in range(2):
            watch(step, torch.ones(1, 4, 16) * (1 + passes))
        # What the present step is the last to need goes when the next begins.
        needed = plans["output"].weights[step:].any(axis=0)
        expected = {(a, k) for a in range(step + 1) for k in range(2) if needed[a]}
        assert set(watch.anchors) == expected
    with pytest.raises(PlanError, match="of 6 steps, the sampler takes more"):
        watch(STEPS, torch.ones(1, 4, 16))


def test_each_pass_of_a_step_is_forecast_from_its_own(plans):
    """Two passes, each of which stays as it is: reuse would miss nothing of either."""
    plan = make_plan(Steps(FULL), Reuse(), plans["output"].timesteps)
    watch = stage.OpenLoop("output", {"a": plan})
    for step in range(STEPS):
        for passes in range(2):
            watch(step, torch.full((1, 4, 16), 1.0 + passes))
    for squares in watch.squares["a"].values():
        assert squares.tolist() == [0, 64 * (1 + 4)]


def test_a_plan_of_other_timesteps_is_refused(pipe, timesteps):
    other = make_plan(Steps(FULL), Reuse(), timesteps * 0.9)
    with pytest.raises(PlanError, match="was made for timestep"):
        list(stage.measured(pipe, call_of(0), 1, {"other": other}))


# ---- The stage


def test_stage_writes_a_tidy_table(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "verified", lambda manifest: Path(manifest).parent)
    call = {"num_inference_steps": 5, "height": 16, "width": 16, "max_sequence_length": 24}
    pipe = load_pipeline(tiny_model, "float32")
    timesteps = timesteps_of(pipe, call | {"prompt": "a red apple"})
    kernel_of(random_trajectories(timesteps), timesteps).save(tmp_path / "kernel.safetensors")
    paths = []
    for label, tap in {"A": "output", "B": "modules"}.items():
        paths.append(str(tmp_path / label / "4.safetensors"))
        METHODS["TaylorSeer"].plan(4, timesteps, tap=tap, order=1).save(paths[-1])
    arguments = argparse.Namespace(
        model=tiny_model / "manifest.json", pipeline=None, plans=paths,
        kernel=tmp_path / "kernel.safetensors",
        prompts=ROOT / "data/prompts/emoji-evaluation.txt", indices=[3, 1], seed=5,
        arguments=call, dtype="float32", threads=1, low_memory=0, anchor_device=None,
        table=tmp_path / "errors.csv",
    )  # fmt: skip
    stage.main(arguments)
    table = read_table(arguments.table)
    assert list(table) == figure.COLUMNS_READ
    assert not table.duplicated(["label", "step", "prompt_index", "quantity"]).any()
    assert set(table["prompt_index"].dropna()) == {1, 3} and (table["full_steps"] == 4).all()
    assert set(table.loc[table["prompt_index"].isna(), "label"]) == {"A"}
    forecasts = table[table["quantity"] == "forecast"]
    assert not forecasts["full"].any() and set(forecasts["label"]) == {"A", "B"}
    latents = table[table["quantity"] == "latents"]
    assert (latents.groupby(["label", "prompt_index"], dropna=False)["step"].size() == 5).all()
    with pytest.raises(ValueError, match=r"no prompts \[999\] of"):
        stage.main(argparse.Namespace(**vars(arguments) | {"indices": [0, 999]}))


# ---- The figure


@pytest.fixture
def table():
    timesteps = flow_timesteps(8)
    made = {
        "far": METHODS["TaylorSeer"].plan(3, timesteps, order=1),
        "EigenCache": METHODS["Newton"].plan(3, timesteps),
    }
    draw, rows = np.random.default_rng(0), []
    for label, plan in made.items():
        for index in (0, 4, 5):
            errors = {name: draw.uniform(0.01, 1, 8) for name in ("forecast", "latents")}
            errors["forecast"][plan.full], errors["latents"][0] = np.nan, 0
            rows += stage.rows(label, plan, errors, index)
    rows += stage.rows("EigenCache", made["EigenCache"], {"latents": np.full(8, 0.5)})
    return pd.DataFrame(rows).astype({"prompt_index": "Int64"})


def test_figure_draws_medians_ranges_predictions_and_full_steps(table):
    for axes, quantity in zip(figure.draw(table).axes, ("latents", "forecast"), strict=True):
        lines = iter(axes.get_lines())
        for label in ("far", "EigenCache"):
            values = table[(table["label"] == label) & (table["quantity"] == quantity)]
            of_step = values[values["prompt_index"].notna() & (values["value"] > 0)]
            expected = of_step.groupby("step")["value"].median()
            measured, told = next(lines), next(lines)
            drawn = pd.Series(measured.get_ydata(), measured.get_xdata()).dropna()
            pd.testing.assert_series_equal(
                drawn, expected, check_names=False, check_index_type=False
            )
            predicted = (quantity, label) == ("latents", "EigenCache")
            assert np.isfinite(told.get_ydata()).any() == predicted
        mine = table[(table["label"] == "EigenCache") & table["full"]]
        ticks = axes.collections[-1].get_segments()
        assert [segment[0, 0] for segment in ticks] == list(mine["step"].unique())


def test_figure_says_how_many_prompts_and_what_the_open_loop_means(table):
    drawn = figure.draw(table)
    text = " ".join(text.get_text() for text in drawn.texts).replace("\n", " ")
    assert "medians of 3 prompts; band: range of EigenCache" in text
    assert "corrects the sum of a gap's forecasts, not each of them" in text
    assert faulty_texts(drawn) == []


def test_figure_has_no_band_where_ours_is_not(table):
    drawn = figure.draw(table[table["label"] == "far"])
    assert not any("band" in text.get_text() for text in drawn.texts)


def test_a_method_looks_as_in_figures_that_have_all_labels(table):
    labels = ["plain", "psnr-40", "far", "EigenCache"]  # the first two have no errors
    lines = figure.draw(table, labels).axes[0].get_lines()
    assert lines[0].get_color() == looks(labels)["far"]["color"] != looks(["far"])["far"]["color"]


@pytest.mark.slow
def test_of_many_methods_those_that_end_closest_are_named(table):
    many = [table[table["label"] == "EigenCache"]]
    for i in range(23):
        far = table[table["label"] == "far"]
        many.append(far.assign(label=f"method-{i:02d}", value=far["value"] * (2 + i)))
    drawn = figure.draw(pd.concat(many))
    named = [text.get_text() for text in drawn.axes[0].texts]
    assert set(named) == {"EigenCache", *(f"method-{i:02d}" for i in range(6))}
    assert any("17 more methods" in text.get_text() for text in drawn.texts)
    assert faulty_texts(drawn) == []


@pytest.mark.slow
def test_figure_repeats_to_the_byte(table, tmp_path):
    written = []
    for _ in range(2):
        paths = [tmp_path / "a.pdf", tmp_path / "a.png"]
        save(figure.draw(table), paths)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table[:0], "no rows"),
        (lambda table: table.drop(columns="quantity"), "lack columns.*'quantity'"),
        (lambda table: table[table["prompt_index"].isna()], "nothing was measured"),
    ],
)
def test_figure_refuses_a_faulty_table(table, spoil, message):
    with pytest.raises(ValueError, match=message):
        figure.draw(spoil(table))


def test_a_plan_of_full_steps_alone_misses_nothing(pipe, timesteps):
    everything = Plan(np.ones(STEPS, bool), np.zeros((STEPS, STEPS)), timesteps, "output")
    ((_, errors),) = stage.measured(pipe, call_of(0), 3, {"all": everything})
    assert (errors["latents"] == 0).all() and np.isnan(errors["forecast"]).all()
