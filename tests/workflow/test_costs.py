"""Costs by tap: the bytes that a cache holds are counted right, and steps are timed by kind."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import faulty_texts, flow_timesteps, sampling, tiny_flux, tiny_pipeline
from pipelines.zoo import ZOO

from eigencache.calibration._calls import called
from eigencache.calibration.recording import recording, timesteps_of
from eigencache.methods import make_plan
from eigencache.plan import TAPS
from eigencache.predictors import Reuse, Taylor
from eigencache.runtime import cached
from eigencache.runtime._blocks import watching
from eigencache.runtime._taps import full_features, tapped
from eigencache.schedules import Steps
from eigencache.tokens import ToCa
from reproduction.figures import costs as figure
from reproduction.figures._common import save
from reproduction.models import pipeline
from reproduction.observing import held_bytes
from reproduction.stages import costs as stage
from reproduction.tables.tables import read_table

ROOT = Path(__file__).parents[2]
STEPS, FULL = 8, [0, 1, 4]
TIMESTEPS = flow_timesteps(STEPS)


# ---- What a cache holds


@pytest.fixture(scope="module")
def sizes():
    """Return how many bytes a feature of each tap has, of all streams together."""
    found, model = {}, tiny_flux()
    for tap in TAPS:
        record = []
        with watching(model, tap, lambda name, feature, r=record: r.append(full_features(feature))):
            next(sampling(model, TIMESTEPS))
        found[tap] = sum(4 * len(feature) for feature in record)
    return found


def held(model, plan, anchor_device=None):
    """Return the bytes that are held after each step."""
    with cached(model, plan, anchor_device):
        return [held_bytes(model) for _ in sampling(model, TIMESTEPS)]


@pytest.mark.parametrize("tap", TAPS)
def test_what_is_held_are_the_features_that_later_steps_need(flux, sizes, tap):
    plan = make_plan(Steps(FULL), Taylor(1), TIMESTEPS, tap=tap)
    found = held(flux, plan)
    for step, count in enumerate(found[:-1]):
        needed = plan.weights[step + 1 :].any(axis=0)[: step + 1].sum()
        # What stands for modules that need not run takes one number each.
        silent = 4 * len(tapped(flux, tap).silent) if tap == "modules" else 0
        assert count == needed * sizes[tap] + silent
    assert max(found) == 2 * sizes[tap] + silent and found[-1] == 0


def test_nothing_is_held_without_a_cache_or_after_it(flux):
    assert held_bytes(flux) == 0
    plan = make_plan(Steps(FULL), Reuse(), TIMESTEPS)
    with cached(flux, plan):
        steps = sampling(flux, TIMESTEPS)
        next(steps)
        assert held_bytes(flux) == 0, "no step repeats the first"
        next(steps)
        assert held_bytes(flux) == 4 * 4 * 16
    assert held_bytes(flux) == 0


def test_recomputed_tokens_are_held_too(flux, sizes):
    plans = [
        make_plan(Steps(FULL), Reuse(), TIMESTEPS, tap="modules", refresh=rule)
        for rule in (None, ToCa())
    ]
    plain, refreshed = (max(held(flux, plan)) for plan in plans)
    assert plain < refreshed < 4 * plain


# ---- The stage


@pytest.mark.slow
def test_steps_are_timed_by_kind_on_every_tap(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "verified", lambda manifest: Path(manifest).parent)
    call = {"num_inference_steps": STEPS, "height": 64, "width": 64, "max_sequence_length": 24}
    arguments = argparse.Namespace(
        model=ROOT / "data/emoji-flux/manifest.json", pipeline=None, arguments=call,
        prompts=ROOT / "data/prompts/emoji-evaluation.txt", images=2,
        full_steps=5, seed=5, dtype="float32", threads=1, low_memory=0, anchor_device=None,
        table=tmp_path / "costs.csv",
    )  # fmt: skip
    stage.main(arguments)
    table = read_table(arguments.table)
    assert list(table["tap"]) == [*TAPS] * 2 and list(table["image"]) == [0] * 5 + [1] * 5
    assert (table["full_steps"] == 5).all() and (table["device"] == "cpu").all()
    assert table["added_peak_mb"].isna().all()
    output = table[table["tap"] == "output"]
    assert (20 * output["skipped_step_seconds"] < output["full_step_seconds"]).all()
    assert (table["skipped_step_seconds"] < table["full_step_seconds"]).all()
    # Two features of 16 tokens with 64 numbers of 4 bytes.
    np.testing.assert_allclose(output["cache_mb"], 2 * 16 * 64 * 4 / 1e6)
    assert output["cache_mb"].iloc[0] == table["cache_mb"].min()


@pytest.mark.parametrize("tap", ["output", "modules"])
def test_what_a_run_held_is_what_its_plan_needs(tap):
    pipe, first = tiny_pipeline(), {}
    draw = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": STEPS, "height": 16, "width": 16}
    call |= {"prompt_embeds": torch.randn(1, 3, 12, generator=draw)}
    call |= {"pooled_prompt_embeds": torch.randn(1, 10, generator=draw)}
    timesteps = timesteps_of(pipe, call)
    plan = make_plan(Steps(FULL), Taylor(1), timesteps, tap=tap)
    uncached, found = stage.steps_of(pipe, call, 0), stage.steps_of(pipe, call, 0, plan)
    assert uncached.cache_mb == 0 and np.isnan(uncached.skipped_seconds)
    assert 0 < found.skipped_seconds < found.full_seconds

    def keep(tap, name, feature):
        first.setdefault(name, 4 * len(full_features(feature)))

    with recording(pipe, [tap], keep):
        called(pipe, call, 0)
    silent = 4 * len(tapped(pipe.transformer, tap).silent) if tap == "modules" else 0
    assert found.cache_mb == (2 * sum(first.values()) + silent) / 1e6
    # Nothing of it stays behind.
    assert held_bytes(pipe) == 0 and "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize(("wanted", "found"), [(3, 3), (5, 5), (2, 3), (1, 3), (6, 5)])
def test_full_steps_are_as_many_as_an_interval_gives(wanted, found):
    plan = stage.nearest_plan(wanted, TIMESTEPS)
    assert len(plan.full_steps) == found


def test_steps_that_cannot_be_skipped_are_refused():
    with pytest.raises(ValueError, match="skips any of 3 steps"):
        stage.nearest_plan(2, TIMESTEPS[:3])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("wan22", "denoises with transformer_2 beside its transformer"), ("sdxl", "")],
)
def test_taps_that_do_not_suit_a_pipeline_are_left_out(name, reason, capsys):
    case = ZOO[name]()
    call = {k: v for k, v in case.arguments().items() if k not in ("generator", "output_type")}
    plans = stage.plans_by_tap(case.pipe, call, 0, 4, timesteps_of(case.pipe, call))
    assert list(plans) == ["output"]
    said = capsys.readouterr().out
    assert said.count("is left out: ") == 4 and reason in said
    assert stage.steps_of(case.pipe, call, 0).full_seconds > 0  # nothing of them has stayed


# ---- The figure


@pytest.fixture
def table():
    rows = [
        (tap, 9, 0.02 + image / 1000, 0.03, 10.0**-i, 10.0**i / 100, "cpu")
        for image in range(3)
        for i, tap in enumerate(["output", "modules"], 1)
    ]
    names = ["tap", "full_steps", "uncached_step_seconds", "full_step_seconds"]
    names += ["skipped_step_seconds", "cache_mb", "device"]
    return pd.DataFrame(rows, columns=names)


def test_dots_are_the_tables_medians(table):
    table.loc[0, "skipped_step_seconds"] = 0.9  # of one image, an outlier
    left, right = figure.draw(table).axes
    lines = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_allclose(lines["full step"].get_xdata(), [30, 30])
    np.testing.assert_allclose(lines["skipped step"].get_xdata(), [100, 10])
    np.testing.assert_allclose(right.get_lines()[0].get_xdata(), [0.1, 1])
    assert [text.get_text() for text in right.texts] == ["0.10", "1.0"]
    assert [text.get_text() for text in left.texts] == ["100", "10", "30", "30"]
    np.testing.assert_allclose(lines["without a cache"].get_xdata(), 21)
    assert [label.get_text() for label in left.get_yticklabels()] == ["output", "modules"]
    ends = np.concatenate([lines.get_segments() for lines in left.collections])
    assert [100, 900] in [list(end[:, 0].round(6)) for end in ends], "the range of the outlier"


def test_every_dot_is_on_the_axis(table):
    for axes in figure.draw(table).axes:
        low, high = axes.get_xlim()
        assert all(low < x < high for line in axes.get_lines() for x in line.get_xdata())


def test_no_text_overlaps_another(table):
    assert faulty_texts(figure.draw(table, "a model, 50 sampler steps")) == []


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
        (lambda table: table.drop(columns="cache_mb"), "lack columns.*'cache_mb'"),
        (lambda table: table.assign(cache_mb=0.0), "not positive"),
    ],
)
def test_figure_refuses_a_faulty_table(table, spoil, message):
    with pytest.raises(ValueError, match=message):
        figure.draw(spoil(table))
