"""The figures: what is drawn are the tables' values, files repeat to the byte, faults are named."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from eigencache.figures import (
    OURS,
    kernel,
    looks,
    pareto,
    plans,
    quality,
    samples,
    save,
    wrapped,
)
from eigencache.methods import METHODS
from eigencache.plan import FEWER_STEPS, FULL, Plan

METHOD_LABELS = [FEWER_STEPS, "FORA", OURS]
STEPS = 12
TIMESTEPS = np.linspace(1000, 50, STEPS)


@pytest.fixture
def summary():
    rows = [(FULL, FULL, STEPS, STEPS, np.inf, 1.0, 1.0)]
    for (i, label), budget in itertools.product(enumerate(METHOD_LABELS), (6, 3, 4)):
        quality = 10 + i + budget
        rows.append(
            (f"{label}-{budget:02d}", label, STEPS, budget, quality, quality / 30, 12 / budget)
        )
    names = ["run", "method", "num_steps", "full_steps", "psnr", "ssim", "speedup"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def records(tmp_path):
    rows = []
    for i, (label, index) in enumerate(itertools.product([*METHOD_LABELS, FULL], range(3))):
        for budget in [STEPS] if label == FULL else [3, 4]:
            run = FULL if label == FULL else f"{label}-{budget:02d}"
            path = tmp_path / f"{run}-{index}.png"
            Image.new("RGB", (8, 8), (10 * i, budget, index)).save(path)
            rows.append((run, label, index, f"prompt {index}", budget, str(path)))
    names = ["run", "method", "prompt_index", "prompt", "full_steps", "image"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def made_plans():
    return {
        "FORA": METHODS["FORA"].plan(5, TIMESTEPS),
        "TaylorSeer": METHODS["TaylorSeer"].plan(5, TIMESTEPS, order=2),
    }


@pytest.fixture
def matrix():
    x = TIMESTEPS / 1000
    return np.exp(-(np.subtract.outer(x, x) ** 2))


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_pareto_draws_the_tables_values(summary):
    panels = pareto.draw(summary).axes
    for axes, (metric, cost) in zip(
        panels, itertools.product(["psnr", "ssim"], ["full_steps", "speedup"]), strict=True
    ):
        lines = lines_of(axes)
        assert list(lines) == METHOD_LABELS
        for label, line in lines.items():
            rows = summary[summary["method"] == label].sort_values(cost)
            np.testing.assert_array_equal(line.get_xdata(), rows[cost])
            np.testing.assert_array_equal(line.get_ydata(), rows[metric])
    assert list(panels[2].get_xticks()) == [3, 4, 6]


def test_pareto_says_what_it_cannot_draw(summary):
    summary.loc[1, "psnr"] = np.inf
    first, *_, last = pareto.draw(summary).axes
    assert [text.get_text() for text in first.texts] == ["not drawn: 1 at infinity"]
    assert not last.texts


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="ssim"), "lack columns.*'ssim'"),
        (lambda table: table[:0], "no rows"),
        (lambda table: table[1:], "needs the run 'full'"),
        (lambda table: table[:1], "at least one other"),
        (lambda table: table.assign(speedup=[1.0] * 9 + [np.nan]), "no speedup of runs"),
    ],
)
def test_pareto_refuses_a_faulty_table(summary, spoil, message):
    with pytest.raises(ValueError, match=message):
        pareto.draw(spoil(summary))


def test_samples_select_the_full_run_first_and_one_run_of_each_method(records):
    shown = samples.select(records, 4, [2, 0])
    assert list(shown["prompt_index"]) == [2] * 4 + [0] * 4
    assert list(shown["run"]) == [FULL, *(f"{label}-04" for label in METHOD_LABELS)] * 2


def test_samples_draw_the_images_and_their_scores(records):
    shown = samples.select(records, 4, [2, 0])
    scores = records[["run", "prompt_index"]].assign(psnr=np.arange(len(records)) + 0.25)
    scores.loc[scores["run"] == FULL, "psnr"] = np.inf
    psnr = samples.table_of(shown, scores)
    assert np.isnan(psnr[:, 0]).all()
    images = samples.read_images(shown["image"]).reshape(2, 4, 8, 8, 3)
    figure = samples.draw(images, [FULL, *METHOD_LABELS], ["prompt 2", "prompt $0$"], psnr)
    drawn = np.stack([axes.images[0].get_array() for axes in figure.axes])
    np.testing.assert_array_equal(drawn.reshape(images.shape), images)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    expected = scores.merge(shown)["psnr"].replace(np.inf, np.nan).dropna()
    assert {f"{value:.1f} dB" for value in expected} < set(texts)
    assert {"prompt 2", "prompt $0$", FULL, *METHOD_LABELS} < set(texts)


def test_small_images_are_enlarged_by_whole_numbers():
    figure = samples.draw(np.zeros((2, 9, 64, 64, 3), np.uint8), list("abcdefghi"), ["x", "y"])
    for axes in figure.axes:
        box = axes.get_position()
        width, height = figure.get_size_inches() * 300
        dots = np.array([box.x0 * width, box.y0 * height, box.width * width, box.height * height])
        np.testing.assert_allclose(dots, dots.round(), atol=1e-6)
        assert tuple(dots[2:].round()) == (192, 192)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="image"), "lack columns.*'image'"),
        (lambda table: table[:0], "no rows"),
        (lambda table: table[table["run"] != "FORA-04"], r"no image of FORA.*runs of \[3\]"),
    ],
)
def test_samples_refuse_faulty_records(records, spoil, message):
    with pytest.raises(ValueError, match=message):
        samples.select(spoil(records), 4, [0])


def test_samples_refuse_what_does_not_fit(records):
    shown = samples.select(records, 4, [0])
    scores = records[["run", "prompt_index"]].assign(psnr=1.0)
    with pytest.raises(ValueError, match=r"FORA-04.*without a score"):
        samples.table_of(shown, scores[scores["run"] != "FORA-04"])
    with pytest.raises(ValueError, match="nothing to draw"):
        samples.draw(np.zeros((0, 0, 8, 8, 3), np.uint8), [], [])
    with pytest.raises(ValueError, match="images must be"):
        samples.draw(np.zeros((1, 2, 8, 8, 3), np.uint8), ["a"], ["x"])


def test_plans_draw_the_weights_on_one_scale(made_plans):
    figure = plans.draw(made_plans)
    panels = figure.axes[:2]
    for axes, (label, plan) in zip(panels, made_plans.items(), strict=True):
        assert axes.get_title() == label
        np.testing.assert_array_equal(axes.images[0].get_array(), plan.weights)
        np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), plan.full_steps)
        assert axes.images[0].get_clim() == panels[0].images[0].get_clim()
        low, high = axes.images[0].get_clim()
        assert low == -high


def test_plans_say_that_colours_are_clipped(made_plans):
    weights = np.stack([plan.weights for plan in made_plans.values()])
    limit, extreme = plans.limits(weights)
    assert limit < abs(extreme) == np.abs(weights).max()
    bar = plans.draw(made_plans).axes[-1]
    assert f"clipped at ±{limit:g}" in bar.get_ylabel()
    unclipped = plans.draw({"FORA": made_plans["FORA"]}).axes[-1]
    assert unclipped.get_ylabel() == "weight"


def test_plans_of_many_streams_are_drawn_as_their_mean(made_plans):
    one = made_plans["TaylorSeer"]
    many = Plan(
        one.full, np.stack([one.weights, 3 * one.weights]), TIMESTEPS, "modules", ("a", "b")
    )
    axes = plans.draw({"x": many}).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), 2 * one.weights)
    assert axes.get_title() == "x\n(mean of 2 streams)"


def test_plans_refuse_what_cannot_share_axes(made_plans):
    with pytest.raises(ValueError, match="no plans"):
        plans.draw({})
    other = METHODS["FORA"].plan(5, TIMESTEPS[:-1])
    with pytest.raises(ValueError, match="differ in their steps"):
        plans.draw(made_plans | {"other": other})


def test_kernel_draws_the_matrix_and_its_spectrum(matrix):
    left, right, _ = kernel.draw(matrix).axes
    np.testing.assert_array_equal(left.images[0].get_array(), matrix)
    shares = np.linalg.eigvalsh(matrix)[::-1] / np.trace(matrix)
    drawn = right.get_lines()[0].get_ydata()
    np.testing.assert_allclose(drawn, shares[: len(drawn)], rtol=1e-3)
    marked = [line.get_xdata()[0] for line in right.get_lines()[1:]]
    for rank, share in zip(marked, kernel.KEPT, strict=True):
        assert shares[:rank].sum() >= share > shares[: rank - 1].sum()


def test_kernel_names_the_number_of_streams(matrix):
    assert "mean of 3 streams" in kernel.draw(matrix, 3).axes[-1].get_ylabel()


@pytest.mark.parametrize("faulty", [np.zeros((0, 0)), np.ones((2, 3)), np.zeros((3, 3))])
def test_kernel_refuses_a_faulty_matrix(faulty):
    with pytest.raises(ValueError, match=r"square|positive"):
        kernel.draw(faulty)


def test_files_repeat_to_the_byte(tmp_path, monkeypatch, summary, made_plans, matrix):
    images = np.arange(2 * 2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 2, 8, 8, 3)
    for name, draw in {
        "pareto": lambda: pareto.draw(summary),
        "samples": lambda: samples.draw(images, ["full", "b"], ["x", "y"]),
        "plans": lambda: plans.draw(made_plans),
        "kernel": lambda: kernel.draw(matrix),
    }.items():
        written = []
        for epoch in ("0", "1700000000"):
            monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
            paths = [tmp_path / f"{name}.pdf", tmp_path / f"{name}.png"]
            save(draw(), paths)
            written.append([path.read_bytes() for path in paths])
        assert written[0] == written[1], name
        assert written[0][0].startswith(b"%PDF") and written[0][1].startswith(b"\x89PNG")


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path, matrix):
    with pytest.raises(ValueError, match=r"\.pdf or \.png"):
        save(kernel.draw(matrix), [tmp_path / "a.png", tmp_path / "a.svg"])
    assert not list(tmp_path.iterdir())


def test_looks_follow_the_order_and_differ():
    labels = [FULL, FEWER_STEPS, *(f"method {i}" for i in range(30)), OURS]
    drawn = looks(labels)
    assert FULL not in drawn
    assert drawn == looks(labels[1:]), "the full run takes no turn"
    seen = {(to_hex(k["color"]), k["marker"], k["linestyle"]) for k in drawn.values()}
    assert len(seen) == len(drawn)
    assert drawn[FEWER_STEPS]["linestyle"] == "--"
    assert drawn[OURS]["linewidth"] > 1


def test_wrapped_text_loses_nothing_unless_told():
    text = "a rather long prompt that costs $5 or $6"
    assert wrapped(text, 0.8, 6.5).split() == text.split()
    assert wrapped(text, 10, 6.5) == text
    short = wrapped(text, 0.8, 6.5, lines=2)
    assert short.count("\n") == 1 and short.endswith("…")


def test_figures_do_not_load_torch():
    code = (
        "import sys, eigencache.figures.pareto, eigencache.figures.samples, "
        "eigencache.figures.plans, eigencache.figures.kernel; assert 'torch' not in sys.modules"
    )
    # A fresh process, since other tests load it.
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Quality


def test_quality_draws_each_prediction_against_its_measurement(summary):
    table = summary.assign(predicted_psnr=np.nan)
    ours = table["method"] == OURS
    table.loc[ours, "predicted_psnr"] = table.loc[ours, "psnr"] + 0.5
    axes = quality.draw(table).axes[0]
    points = [line for line in axes.lines if line.get_label() == OURS]
    assert len(points) == 1
    assert sorted(points[0].get_xdata()) == sorted(table.loc[ours, "predicted_psnr"])
    assert sorted(points[0].get_ydata()) == sorted(table.loc[ours, "psnr"])
    assert {text.get_text() for text in axes.texts} == {"3", "4", "6"}


def test_quality_needs_a_prediction(summary):
    with pytest.raises(ValueError, match="no run of the summary has a predicted PSNR"):
        quality.draw(summary.assign(predicted_psnr=np.nan))
