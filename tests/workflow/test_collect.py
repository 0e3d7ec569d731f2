"""Collecting: the features of chosen streams along a run, their file, and their figure."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import snakemake

from eigencache.calibration._calls import called
from eigencache.calibration.recording import recording
from eigencache.calibration.sampler import image_seed, load_pipeline
from eigencache.commands.prompts import read_prompts
from eigencache.methods import Gate, make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Taylor
from eigencache.runtime._taps import fingerprint, full_features
from eigencache.schedules import Steps
from reproduction.config import ConfigError
from reproduction.experiment import Experiment
from reproduction.figures import trajectory as figure
from reproduction.figures._common import save
from reproduction.models import pipeline
from reproduction.stages import collect as stage
from reproduction.trajectory import Trajectory, TrajectoryError

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"num_inference_steps": 4, "height": 64, "width": 64, "max_sequence_length": 24}
CALL = ARGUMENTS | {"prompt": "a red apple"}
CALIBRATION = ROOT / "data/prompts/emoji-calibration.txt"


@pytest.fixture(scope="module")
def pipe():
    torch.set_num_threads(1)
    return load_pipeline(ROOT / "data/emoji-flux", "float32")


def collected(pipe, tap, *streams, **options):
    return stage.collect(pipe, CALL, 5, tap, *streams, **options)


@pytest.fixture(scope="module")
def blocks(pipe):
    return collected(pipe, "blocks")


def test_features_are_those_that_calibration_sees(pipe, blocks):
    recorded = {}

    def keep(tap, name, feature):
        recorded.setdefault(name, []).append(full_features(feature))

    with recording(pipe, ["blocks"], keep):
        called(pipe, CALL, 5)
    for name, steps in recorded.items():
        parts = [blocks.features[f"{name}.{part}"] for part in ("image", "text")]
        ours = np.concatenate([part.reshape(4, -1) for part in parts], 1)
        np.testing.assert_array_equal(ours, torch.stack(steps).numpy())
    assert len(blocks.features) == 2 * len(recorded)


def test_trajectory_says_what_it_is_of(pipe, blocks):
    assert (blocks.tap, blocks.prompt, blocks.seed) == ("blocks", "a red apple", 5)
    assert blocks.model == fingerprint(pipe.transformer)
    np.testing.assert_allclose(blocks.timesteps, 1000 * blocks.sigmas[:-1], rtol=1e-6)
    assert blocks.sigmas[-1] == 0
    feature = blocks.features["single_transformer_blocks.5.image"]
    assert feature.shape == (4, 16, 192) and feature.dtype == np.float32


def test_output_is_what_moves_the_latents(pipe):
    made = collected(pipe, "output")
    latents = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: latents.append(kwargs["hidden_states"][0].numpy()),
        with_kwargs=True,
    )
    called(pipe, CALL, 5)
    hook.remove()
    moved = np.diff(made.sigmas)[:, None, None] * made.features["output"]
    np.testing.assert_allclose(np.diff(latents, axis=0), moved[:-1], atol=1e-5)


def test_streams_are_chosen_by_patterns(pipe):
    patterns = ["transformer_blocks.*.ff", "single_transformer_blocks.3.*"]
    made = collected(pipe, "modules", patterns)
    assert list(made.features) == [
        "transformer_blocks.0.ff",
        "transformer_blocks.1.ff",
        "single_transformer_blocks.3.proj_out",
    ]
    with pytest.raises(ValueError, match=r"'blocks\.9' matches none of .*'transformer_blocks\.0"):
        collected(pipe, "modules", ["*", "blocks.9"])


def test_features_may_be_compressed(pipe, blocks):
    made = collected(pipe, "blocks", features="token-mean")
    name = "transformer_blocks.1"
    means = [blocks.features[f"{name}.{part}"].mean(1) for part in ("image", "text")]
    np.testing.assert_allclose(made.features[name], np.concatenate(means, 1), atol=1e-5)


# ---- The file


def test_file_gives_back_what_was_saved(tmp_path, blocks):
    blocks.save(tmp_path / "blocks.safetensors")
    loaded = Trajectory.load(tmp_path / "blocks.safetensors")
    assert list(loaded.features) == list(blocks.features), "the network's order, not the alphabet's"
    for name, feature in blocks.features.items():
        np.testing.assert_array_equal(loaded.features[name], feature)
    for name in ("timesteps", "sigmas"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(blocks, name))
    for name in ("tap", "prompt", "seed", "model"):
        assert getattr(loaded, name) == getattr(blocks, name)


def test_damaged_file_is_named(tmp_path, blocks):
    path = tmp_path / "blocks.safetensors"
    with pytest.raises(FileNotFoundError):
        Trajectory.load(path)
    blocks.save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrajectoryError, match=r"blocks\.safetensors: damaged"):
        Trajectory.load(path)


STEPS = 6
SIGMAS = np.linspace(1, 0, STEPS + 1)


@pytest.mark.parametrize(
    ("features", "sigmas", "message"),
    [
        ({}, SIGMAS, "at least one stream"),
        ({"a": np.ones((STEPS - 1, 2))}, SIGMAS, "'a': 5 entries in 6 steps"),
        ({"a": np.full((STEPS, 2), np.nan)}, SIGMAS, "'a': not finite"),
        ({"a": np.ones((STEPS, 2))}, SIGMAS[1:], "6 sigmas do not fit 6 steps"),
    ],
)
def test_faulty_trajectory_is_refused(features, sigmas, message):
    with pytest.raises(TrajectoryError, match=message):
        Trajectory(features, 1000 * SIGMAS[:-1], sigmas, "output", "a prompt", 1, "model")


# ---- The stage and its configuration


def arguments(path, **changes):
    made = {
        "model": ROOT / "data/emoji-flux/manifest.json", "prompts": CALIBRATION,
        "index": 2, "seed": 7,
        "arguments": ARGUMENTS, "dtype": "float32", "pipeline": None, "threads": 1, "tap": "hidden",
        "streams": ["*"], "features": "whole", "trajectory": path, "low_memory": 0,
    }  # fmt: skip
    return argparse.Namespace(**made | changes)


def test_stage_records_a_calibration_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "verified", lambda manifest: Path(manifest).parent)
    path = tmp_path / "hidden.safetensors"
    stage.main(arguments(path))
    made = Trajectory.load(path)
    assert made.prompt == read_prompts(CALIBRATION)[2] and made.seed == image_seed(7, 2)
    assert list(made.features) == ["hidden"]
    with pytest.raises(ValueError, match="no prompt 99 of 64"):
        stage.main(arguments(path, index=99))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": ARGUMENTS | {"hight": 64}}, "no argument 'hight'; did you mean 'height'"),
        ({"pipeline": "FluxPipelin"}, "no pipeline 'FluxPipelin'; did you mean 'FluxPipeline'"),
        ({"pipeline": "FluxFillPipelin"}, "did you mean 'FluxFillPipeline'"),
        (
            {"pipeline": "FluxControlNetPipeline"},
            "emoji-flux is a FluxPipeline and has no controlnet",
        ),
    ],
)
def test_a_pipeline_that_cannot_be_called_so_is_refused_before_it_is_checked(
    tmp_path, monkeypatch, changes, message
):
    def verified(manifest):
        raise AssertionError("too late")

    monkeypatch.setattr(pipeline, "verified", verified)
    with pytest.raises(ValueError, match=message):
        stage.main(arguments(tmp_path / "x.safetensors", **changes))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"prompt": 99}, "collect.prompt: 99 is none of the 16 calibration prompts"),
        ({"features": "half"}, "collect.features: 'half' is not allowed"),
        ({"streams": {"attic": ["*"]}}, "collect.streams: 'attic' is not allowed"),
        ({"streams": {"modules": []}}, r"collect.streams.modules: \[\] is not allowed"),
        ({"steps": 3}, "collect: unknown key 'steps'"),
    ],
)
def test_mistake_names_the_key(monkeypatch, section, message):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"collect": section}
    with pytest.raises(ConfigError, match=message):
        Experiment(config)


def dry_run(*arguments: str) -> str:
    return snakemake(ROOT, "-n", "-p", "--nolock", "--forceall", *arguments)


@pytest.mark.slow
def test_targets_are_made_by_their_paths():
    chosen = "collect={'streams': {'modules': ['*.attn', '*.ff']}}"
    target = "results/emoji-flux/collected/modules.safetensors"
    printed = dry_run("figures/emoji-flux/trajectory.pdf", target, "--config", chosen)
    assert "--tap modules --index 0 --features whole --streams '*.attn' '*.ff' --seed" in printed
    assert "--tap blocks --index 0 --features whole --streams '*' --seed" in printed
    assert "--plan results/emoji-flux/plans/FORA/9.safetensors --setting" in printed
    assert "collect" not in dry_run("all").split("Job stats:")[1]


# ---- The figure


def test_principal_components_of_a_circle_are_equal():
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn), 0 * turn + 3], 1)
    coordinates, shares = figure.principal(circle)
    np.testing.assert_allclose(shares, 0.5)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=1), 1)
    assert (coordinates[0] <= 0).all()
    assert np.isfinite(figure.principal(np.ones((5, 3)))[1]).all()


def test_forecast_errors_are_those_of_the_forecasts():
    sigmas = np.array([1, 0.9, 0.7, 0.4, 0.2, 0.1, 0])
    line = np.outer(sigmas[:-1], [3.0, 4.0])
    again, straight = figure.forecast_errors(line, sigmas)
    np.testing.assert_allclose(again, np.diff(sigmas[:-1]) / -sigmas[1:-1])
    np.testing.assert_allclose(straight, 0, atol=1e-12)
    again, straight = figure.forecast_errors(np.zeros((6, 2)), sigmas)
    assert not again.any() and not straight.any()


def test_figure_has_a_panel_a_stream_and_a_line_in_each_of_two(blocks):
    drawn = figure.draw(blocks.features, blocks.sigmas)
    *panels, bar, again, straight = drawn.axes
    images = [name for name in blocks.features if name.endswith(".image")]
    titles = [axes.get_title("left") for axes in panels]
    assert [f"{title.split()[1]}.image" for title in titles] == images
    assert bar.get_ylabel() == "step"
    for axes, errors in zip((again, straight), range(2), strict=True):
        for line, name in zip(axes.get_lines(), images, strict=True):
            feature = blocks.features[name].reshape(4, -1).astype(float)
            expected = figure.forecast_errors(feature, blocks.sigmas)[errors]
            np.testing.assert_array_equal(line.get_ydata(), expected)


@pytest.mark.slow
def test_figure_of_many_streams_has_a_dozen_panels(tmp_path):
    draw = np.random.default_rng(0)
    features = {f"blocks.{i}": draw.normal(size=(STEPS, 3)) for i in range(57)}
    drawn = figure.draw(features, SIGMAS)
    titles = [axes.get_title("left") for axes in drawn.axes[: figure.PANELS]]
    assert titles[0] == "a  blocks.0" and titles[-1] == "l  blocks.56"
    assert len(drawn.axes) == figure.PANELS + 3 and len(drawn.axes[-1].get_lines()) == 57
    written = []
    for _ in range(2):
        save(figure.draw(features, SIGMAS), [tmp_path / "a.pdf", tmp_path / "a.png"])
        written.append((tmp_path / "a.pdf").read_bytes() + (tmp_path / "a.png").read_bytes())
    assert written[0] == written[1]


# ---- What a plan makes of it


STEPS_10 = 1000 * np.linspace(1, 0.1, 10)


def trajectory_of(tap="blocks", names=("a.image", "a.text", "b.image", "b.text"), model="m"):
    draw = np.random.default_rng(2)
    waves = np.stack([np.cos(k * STEPS_10 / 300) for k in range(4)], 1)
    features = {name: waves @ draw.normal(size=(4, 12)) + 0.5 for name in names}
    sigmas = np.append(STEPS_10 / 1000, 0)
    return Trajectory(features, STEPS_10, sigmas, tap, "a prompt", 1, model)


def plan_at(tap="modules", **changes):
    plan = make_plan(Steps([0, 1, 4, 7]), Taylor(1), STEPS_10, tap=tap)
    return replace(plan, **changes)


def test_forecasts_are_drawn_where_the_weights_put_them():
    """Against the singular value decomposition, which gives the directions themselves."""
    made, plan = trajectory_of(), plan_at()
    drawn = figure.draw(made.features, made.sigmas, figure.errors_of(plan, made), "TaylorSeer")
    for axes, name in zip(drawn.axes, ("a", "b"), strict=False):
        feature = made.features[f"{name}.image"]
        mean = feature.mean(0)
        directions = np.linalg.svd(feature - mean, full_matrices=False)[2][:2]
        skipped = np.flatnonzero(~plan.full)
        expected = (plan.weights[skipped] @ feature - mean) @ directions.T
        lines = [line for line in axes.get_lines() if len(line.get_xdata())]  # not of the legend
        (crosses,) = [line for line in lines if line.get_marker() == "x"]
        np.testing.assert_allclose(np.abs(crosses.get_xydata()), np.abs(expected), atol=1e-8)
        joints = axes.collections[1].get_segments()
        true, _ = figure.principal(feature)
        np.testing.assert_allclose([joint[0] for joint in joints], true[skipped])
        np.testing.assert_allclose([joint[1] for joint in joints], crosses.get_xydata())
        (dots,) = [line for line in lines if len(line.get_xdata()) == 4]
        np.testing.assert_allclose(dots.get_xydata(), true[plan.full])


def test_errors_of_the_plan_stand_beside_those_of_simple_forecasts():
    made, plan = trajectory_of(), plan_at()
    drawn = figure.draw(made.features, made.sigmas, figure.errors_of(plan, made), "TaylorSeer")
    panel = drawn.axes[-1]
    assert len(panel.get_lines()) == 2
    feature = made.features["b.image"]
    expected = np.linalg.norm(plan.weights @ feature - feature, axis=1)
    expected = np.where(plan.full, np.nan, expected / np.linalg.norm(feature, axis=1))
    np.testing.assert_allclose(panel.get_lines()[1].get_ydata(), expected)


def test_zero_is_found_in_the_coordinates_of_a_feature():
    feature = trajectory_of().features["a.image"]
    mean = feature.mean(0)
    directions = np.linalg.svd(feature - mean, full_matrices=False)[2][:2]
    np.testing.assert_allclose(np.abs(figure.off_centre(feature)), np.abs(directions @ mean))
    assert (figure.off_centre(np.ones((5, 3))) == 0).all()


def test_streams_that_a_plan_computes_have_no_forecasts():
    made = trajectory_of("delta", ("front.image", "back.image"))
    plan = plan_at("delta")
    names, weights = Gate(1).streams(plan.weights)
    missed = figure.errors_of(replace(plan, weights=weights, streams=names), made)
    assert not missed["front"].any() and missed["back"].any()
    assert np.isnan(figure.plan_errors(made.features["front.image"], missed["front"])).all()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_at("output", model="m"), "features at tap 'output', the trajectory at 'blocks'"),
        (plan_at("blocks", model="other"), "the plan is of model other, the trajectory of m"),
        (plan_at(timesteps=STEPS_10 * 0.9), "was made for timestep 900 at step 0"),
        (plan_at("blocks", weights=np.stack([plan_at().weights] * 2), streams=("a", "c")),
         "no weights for stream 'b'"),
    ],
)  # fmt: skip
def test_a_plan_that_is_of_something_else_is_refused(plan, message):
    with pytest.raises(PlanError, match=message):
        figure.errors_of(plan, trajectory_of())


@pytest.mark.parametrize(
    ("features", "sigmas"),
    [({}, SIGMAS), ({"a.text": np.ones((6, 2))}, SIGMAS), ({"a": np.ones((2, 2))}, SIGMAS[:3])],
)
def test_figure_refuses_what_cannot_be_drawn(features, sigmas):
    with pytest.raises(ValueError, match="can be drawn"):
        figure.draw(features, sigmas)


def test_figures_do_not_load_torch():
    code = (
        "import sys, reproduction.figures.trajectory, reproduction.figures.ablation; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # a fresh process: others load it
