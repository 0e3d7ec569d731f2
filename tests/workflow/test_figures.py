"""The figures: what is drawn are the tables' values, files repeat to the byte, faults are named."""

import argparse
import itertools
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from helpers import faulty_texts, kernel_of, program, random_trajectories
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from eigencache._files import sha256
from eigencache.methods import METHODS
from eigencache.metrics import METRICS
from eigencache.plan import FEWER_STEPS, FULL, Plan
from reproduction.figures import (
    kernel,
    metrics,
    oracle,
    pareto,
    plans,
    quality,
    samples,
    schedules,
    strip,
)  # fmt: skip
from reproduction.figures._common import OURS, inches, looks, of_first_reference, save, wrapped
from reproduction.provenance import record
from reproduction.tables.tables import write_table

METHOD_LABELS = [FEWER_STEPS, "FORA", OURS]
STEPS = 12
TIMESTEPS = np.linspace(1000, 50, STEPS)
# Of the full run, and of a method at 7, 9, 12 and 18 of 50 full steps.
BUDGETS = (7, 9, 12, 18)
PSNR, SPEEDUP = (38.2, 40.7, 43.5, 48.2), (6.6, 5.1, 3.9, 2.6)
SSIM, LPIPS = (0.982, 0.991, 0.995, 0.9982), (0.021, 0.0096, 0.0043, 0.0011)
CLIP, FRECHET = (85.1, 85.3, 85.2, 85.0), (4.1, 2.2, 0.9, 0.31)


def summary_of(labels, references=(FULL,)):
    """Return a summary as the workflow writes it: each label is a bit better and slower."""
    rows = []
    for reference in references:
        full = {"psnr": np.inf, "ssim": 1.0, "st_lpips_alex": 0.0, "clip_score": 85.0}
        rows.append(
            {"run": FULL, "method": FULL, "reference": reference, "num_steps": 50,
             "full_steps": 50, "speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0,
             "frechet_lite0": 0.0, "baseline": np.nan, "predicted_psnr": np.nan,
             **full, **{f"{k}_{end}": v for k, v in full.items() for end in ("low", "high")},
             "clip_score_low": 83.6, "clip_score_high": 86.3}
        )  # fmt: skip
        for (i, label), (k, steps) in itertools.product(enumerate(labels), enumerate(BUDGETS)):
            better = 0.8**i
            means = {"psnr": PSNR[k] + i, "clip_score": CLIP[k] - 0.02 * i}
            means |= {"ssim": 1 - better * (1 - SSIM[k]), "st_lpips_alex": better * LPIPS[k]}
            spread = {"psnr": 0.9, "clip_score": 1.3}
            spread |= {"ssim": 0.3 * (1 - means["ssim"]), "st_lpips_alex": 0.25 * better * LPIPS[k]}
            speedup = SPEEDUP[k] * (1 - 0.025 * i)
            rows.append(
                {"run": f"{label}-{steps:02d}", "method": label, "reference": reference,
                 "num_steps": steps if label == FEWER_STEPS else 50, "full_steps": steps,
                 "speedup": speedup, "speedup_low": 0.96 * speedup, "speedup_high": 1.05 * speedup,
                 "frechet_lite0": better * FRECHET[k], "baseline": f"{FEWER_STEPS}-{steps:02d}",
                 "predicted_psnr": means["psnr"] - 0.6 if label == OURS else np.nan, **means,
                 **{f"{name}_low": means[name] - spread[name] for name in means},
                 **{f"{name}_high": means[name] + spread[name] for name in means}}
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def summary():
    return summary_of(METHOD_LABELS)


MANY = [FEWER_STEPS, *(f"Published-method-{i:02d}" for i in range(23)), OURS]


@pytest.fixture
def scores(tmp_path):
    rows = []
    for i, (label, index) in enumerate(itertools.product([*METHOD_LABELS, FULL], range(3))):
        for steps in [STEPS] if label == FULL else [3, 4]:
            run = FULL if label == FULL else f"{label}-{steps:02d}"
            path = tmp_path / f"{run}-{index}.png"
            Image.new("RGB", (8, 8), (10 * i, steps, index)).save(path)
            psnr = np.inf if label == FULL else 30 + i + 0.25
            rows.append((run, label, FULL, steps, index, f"prompt {index}", psnr, str(path),
                         sha256(path)))  # fmt: skip
    names = ["run", "method", "reference", "full_steps", "prompt_index", "prompt", "psnr", "image",
             "sha256"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def made_plans():
    return {
        "FORA": METHODS["FORA"].plan(5, TIMESTEPS),
        "TaylorSeer": METHODS["TaylorSeer"].plan(5, TIMESTEPS, order=2),
    }


@pytest.fixture
def kernels():
    made = random_trajectories(TIMESTEPS)
    two = kernel_of(made, TIMESTEPS, ("a", "b"), tap="modules", normalisation="cosine")
    return {
        "output.full.second-moment": kernel_of(made, TIMESTEPS),
        "modules.full.cosine": two,
    }


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def said(figure):
    """Return all that stands above and below the panels of a figure, in one line."""
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


COSTS = [pareto.SPEEDUP, pareto.STEPS]


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.column)
def test_pareto_draws_the_tables_values(summary, cost):
    figure = pareto.draw(summary, cost=cost, setting="a model, 50 sampler steps")
    axes = figure.axes[0]
    lines = lines_of(axes)
    assert [label for label in lines if not label.startswith("_")] == METHOD_LABELS
    for label in METHOD_LABELS:
        rows = summary[summary["method"] == label].sort_values(cost.column)
        np.testing.assert_array_equal(lines[label].get_xdata(), rows[cost.column])
        np.testing.assert_array_equal(lines[label].get_ydata(), rows["psnr"])
    if cost is pareto.STEPS:
        assert list(axes.get_xticks()) == list(BUDGETS)
    assert {text.get_text() for text in axes.texts} == set(METHOD_LABELS), "each line is named"
    assert "a model, 50 sampler steps" in said(figure)


def test_pareto_marks_the_budgets(summary):
    figure = pareto.draw(summary)
    points = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None"]
    of_budget = {int(row.full_steps): row.speedup for row in summary.itertuples()}
    assert "Full steps: ● 7, ■ 9, ▲ 12, ◆ 18." in said(figure)
    for budget, marker in zip(BUDGETS, "os^D", strict=True):
        drawn = [line.get_xdata()[0] for line in points if line.get_marker() == marker]
        assert of_budget[budget] in drawn and len(drawn) == len(METHOD_LABELS)


def bars_of(axes):
    """Return the ends of all bars on some axes: x0, y0, x1, y1."""
    return np.concatenate([bars.get_segments() for bars in axes.collections]).reshape(-1, 4)


def test_pareto_draws_the_tables_intervals(summary):
    rows = summary[summary["run"] != FULL]
    expected = rows[["speedup", "psnr_low", "speedup", "psnr_high"]].to_numpy()
    drawn = bars_of(pareto.draw(summary).axes[0])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pareto", "budget", "metrics"])
def test_figures_of_a_summary_run_as_rules_run_them(summary, tmp_path, name):
    table = tmp_path / "summary.csv"
    write_table(summary, table)
    inputs = {"inputs": {}, "sources": {}, "models": {}, "seeds": {}, "devices": []}
    about = {"stage": "test", "code": "", "config": "0" * 64, "settings": {}, **inputs}
    record.write(table, about | {"package": {}, "libraries": {}})
    inputs = ["--summary", str(table), "--labels", *METHOD_LABELS, "--setting", SETTING]
    done = program("-m", f"reproduction.figures.{name}", *inputs, "--out", f"{tmp_path}/a.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").is_file() and (tmp_path / "a.png.json").is_file()


def test_budget_draws_what_plans_predicted(summary):
    axes = pareto.draw(summary, cost=pareto.STEPS).axes[0]
    dashes = [line for line in axes.get_lines() if line.get_marker() == "_"]
    drawn = np.concatenate([line.get_ydata() for line in dashes])
    told = summary["predicted_psnr"].dropna()
    assert sorted(drawn[np.isfinite(drawn)]) == sorted(told)


def test_metrics_draw_the_tables_values_and_intervals(summary):
    panels = metrics.draw(summary).axes
    names = ["ssim", "st_lpips_alex", "clip_score", "frechet_lite0"]
    for axes, metric, letter in zip(panels, names, "abcd", strict=True):
        better = "higher" if METRICS[metric].higher else "lower"
        assert axes.get_title("left") == f"{letter}  {METRICS[metric].label}"
        assert better in axes.get_ylabel()
        for label in METHOD_LABELS:
            rows = summary[summary["method"] == label].sort_values("full_steps")
            np.testing.assert_array_equal(lines_of(axes)[label].get_xdata(), rows["full_steps"])
            np.testing.assert_array_equal(lines_of(axes)[label].get_ydata(), rows[metric])
    rows = summary[summary["run"] != FULL]
    for axes, metric in zip(panels, names[:2], strict=False):
        ends = ["full_steps", f"{metric}_low", "full_steps", f"{metric}_high"]
        assert sorted(map(tuple, bars_of(axes))) == sorted(map(tuple, rows[ends].to_numpy()))
    assert not panels[3].collections, "a metric of the whole set has no interval"


def test_metrics_draw_one_band_where_prompts_matter_more_than_methods(summary):
    axes = metrics.draw(summary).axes[2]
    assert not axes.collections
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((83.6, 86.3))
    mean = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert len(mean) == 1 and set(mean[0].get_ydata()) == {85.0}


def test_metrics_need_one_besides_the_psnr(summary):
    alone = summary[[c for c in summary if not c.startswith(("ssim", "st_", "clip", "frechet"))]]
    assert pareto.draw(alone).axes
    with pytest.raises(ValueError, match="no metric besides psnr"):
        metrics.draw(alone)


def test_pareto_draws_the_first_reference_alone(summary):
    run = f"{OURS}-18"
    both = pd.concat([summary, summary.assign(reference=run, psnr=1.0)])
    drawn, alone = pareto.draw(both).axes[0], pareto.draw(summary).axes[0]
    for a, b in zip(drawn.get_lines(), alone.get_lines(), strict=True):
        np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())
    turned = both.iloc[::-1]
    ours = lines_of(pareto.draw(turned).axes[0])[OURS]
    assert len(ours.get_xdata()) == 3, "the reference itself is no point"


def test_figures_say_what_they_cannot_draw(summary):
    summary.loc[1, ["psnr", "psnr_high"]] = np.inf
    summary.loc[1, "ssim"] = 1.0
    texts = [text.get_text() for text in pareto.draw(summary).axes[0].texts]
    assert "not drawn: 1 at infinity" in texts
    first, second, *_ = metrics.draw(summary).axes
    assert [text.get_text() for text in first.texts] == ["not drawn: 1 at 1"]
    assert not second.texts


def test_methods_that_all_equal_the_full_run_are_counted(summary):
    columns = ["psnr", "psnr_low", "psnr_high", "predicted_psnr"]
    summary[columns] = np.inf
    for cost in COSTS:
        figure = pareto.draw(summary, cost=cost)
        assert "not drawn: 12 at infinity" in [text.get_text() for text in figure.axes[0].texts]
        assert faulty_texts(figure) == []


# ---- Equal quality


@pytest.fixture
def predictions():
    """Rows of benchmarks/quality.py: two models at two scales, and plans of two probes."""
    rows = [
        (model, scale, "EigenCache-design", b, np.nan, 30 + b + k, 30.5 + b + 3 * k)
        for k, model in enumerate("ab") for scale in (1.0, 3.0) for b in (5, 9)
    ]  # fmt: skip
    rows += [("a", 1.0, quality.PROBED, 9, probe, 40 + 2 * probe, 41) for probe in (0, 1)]
    names = ["model", "guidance", "method", "full_steps", "probe", "predicted", "measured"]
    return pd.DataFrame(rows, columns=names)


def test_quality_draws_what_was_predicted_and_measured(predictions, tmp_path):
    figure = quality.draw(predictions)
    probed = predictions["method"] == quality.PROBED
    for axes, rows in zip(figure.axes, (predictions[~probed], predictions[probed]), strict=True):
        drawn = [line.get_xydata() for line in axes.get_lines() if line.get_linestyle() == "None"]
        expected = rows[["predicted", "measured"]].to_numpy(float)
        assert sorted(map(tuple, np.concatenate(drawn))) == sorted(map(tuple, expected))
    said = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "Calibrated plans: 4 of 8 are in the band." in said
    assert "Plans of one prompt: 2 of 2 are" in said
    save(figure, [tmp_path / "quality.png"])


@pytest.mark.parametrize("name", ["quality", "oracle"])
def test_they_are_drawn_from_the_tables_in_git(tmp_path, name):
    """No job of the workflow has written these, so they have no manifests."""
    table, out = f"data/benchmarks/{name}.csv", tmp_path / f"{name}.png"
    done = program("-m", f"reproduction.figures.{name}", "--table", table, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.is_file()


def test_the_oracle_draws_every_prompt_in_the_order_of_one_plan():
    rows = [(5, 1, 2.0, 3.0, 2.5, 7), (5, 0, 1.0, 4.0, 1.5, 7), (9, 0, 8.0, 9.0, 9.5, 8)]
    names = ["full_steps", "prompt_index", "shared", "oracle", "closed", "plans"]
    table = pd.DataFrame(rows, columns=names)
    figure = oracle.draw(table)
    first, second = figure.axes
    drawn = [line.get_ydata().tolist() for line in first.get_lines()]
    assert drawn == [[1.0, 2.0], [4.0, 3.0], [1.5, 2.5]]
    assert [line.get_ydata().tolist() for line in second.get_lines()] == [[8.0], [9.0], [9.5]]
    with pytest.raises(ValueError, match=r"lack columns.*'oracle'"):
        oracle.draw(table.drop(columns="oracle"))


def test_quality_refuses_a_faulty_table(predictions):
    with pytest.raises(ValueError, match=r"lack columns.*'predicted'"):
        quality.draw(predictions.drop(columns="predicted"))


def points(psnr, costs=(4, 8, 16)):
    return pd.DataFrame({"full_steps": costs, "speedup": 64 / np.array(costs), "psnr": psnr})


def test_the_cost_at_equal_quality_is_interpolated():
    assert pareto.needed(points([30, 40, 50]), "full_steps", 40) == (pytest.approx(8), "=")
    value, how = pareto.needed(points([30, 40, 50]), "full_steps", 45)
    assert (value, how) == (pytest.approx(np.sqrt(8 * 16)), "=")
    value, how = pareto.needed(points([30, 40, 50]), "speedup", 45)
    assert (value, how) == (pytest.approx(64 / np.sqrt(8 * 16)), "=")
    # The first crossing counts; infinity is above everything.
    assert pareto.needed(points([30, 50, 40]), "full_steps", 45)[0] < 8
    assert pareto.needed(points([30, np.inf, np.inf]), "full_steps", 45)[1] == "="


def test_beyond_what_was_measured_there_is_a_bound():
    assert pareto.needed(points([30, 40, 50]), "full_steps", 25) == (pytest.approx(4), "above")
    assert pareto.needed(points([30, 40, 50]), "full_steps", 55) == (pytest.approx(16), "below")
    assert pareto.needed(points([30, 40, 50]), "speedup", 25) == (pytest.approx(16), "above")


def test_quality_is_equal_at_the_highest_that_more_than_half_of_the_methods_reach():
    table = pd.concat(
        [points(psnr).assign(method=name) for name, psnr in
         {"a": [30, 40, 44], "b": [35, 43, 50], "c": [52, 55, 60], "d": [20, 22, 24]}.items()]
    )  # fmt: skip
    assert pareto.equal_quality(table, "full_steps") == 44, "two of four reach 45: not more"
    five = pd.concat([table, points([44.5, 46, 47.9]).assign(method="e")])
    assert pareto.equal_quality(five, "full_steps") == 47, "b, c and e"
    reached = [rows["psnr"].max() >= 47 for _, rows in five.groupby("method")]
    assert sum(reached) > len(reached) / 2
    two = table[table["method"].isin(["a", "c"])]
    assert pareto.equal_quality(two, "full_steps") == 44, "c is above that anyway"
    assert pareto.equal_quality(table[table["method"] == "a"], "full_steps") is None
    assert pareto.equal_quality(table[table["full_steps"] == 4], "full_steps") is None
    assert pareto.equal_quality(table.assign(psnr=np.inf), "full_steps") is None


def test_equal_quality_is_drawn_best_first(summary):
    for cost in COSTS:
        _, right = pareto.draw(summary, cost=cost).axes
        target = int(re.search(r"at (\d+) dB", right.get_title("left"))[1])
        assert [tick.get_text() for tick in right.get_yticklabels()] == METHOD_LABELS[::-1]
        for line, label in zip(right.get_lines(), METHOD_LABELS[::-1], strict=True):
            rows = summary[summary["method"] == label]
            assert line.get_xdata()[0] == pareto.needed(rows, cost.column, target)[0]


def test_pareto_says_why_methods_inside_the_network_are_slow(summary):
    rows = summary["method"] == "FORA"
    full = summary["full_steps"]
    summary.loc[rows, "speedup"] = 50 / (full + 0.25 * (50 - full))
    text = said(pareto.draw(summary, inner=["FORA", "absent"]))
    assert "FORA: these forecast features inside the network" in text
    assert "takes 25 % of a full step" in text
    summary.loc[rows, "speedup"] = 50 / (full + 0.01 * (50 - full))
    assert "inside the network" not in said(pareto.draw(summary, inner=["FORA"]))
    assert "inside the network" not in said(pareto.draw(summary, cost=pareto.STEPS, inner=["FORA"]))


# ---- Many methods


def test_few_methods_are_all_in_colour(summary):
    assert pareto.in_colour(summary[1:]) == set(METHOD_LABELS)


def lagging():
    """Return runs of twelve methods, two each, of known lags behind ours, and one fast bad one."""
    rows = [(f"m{i:02d}", speed, 60 - 3 * i) for i in range(12) for speed in (2.0, 4.0)]
    rows += [(OURS, 2.5, 62), (OURS, 5.0, 61), ("hasty", 9.0, 20), ("hasty", 4.9, 20),
             ("once", 4.0, 62)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "speedup", "psnr"])
    table["run"] = [f"{method}-{i}" for i, method in enumerate(table["method"])]
    return table.assign(baseline="m11-22")


def test_of_many_methods_those_that_lag_least_are_in_colour():
    chosen = pareto.in_colour(lagging())
    assert chosen == {OURS, FEWER_STEPS, "m11", "m00", "m01", "m02", "m03", "m04"}
    named = pareto.in_colour(lagging(), ["m07"])
    assert named == {OURS, FEWER_STEPS, "m11", "m07"}
    with pytest.raises(ValueError, match=r"no method \['m99'\] to highlight; there are \['m00'"):
        pareto.in_colour(lagging(), ["m99"])


def test_pareto_draws_infinite_values_among_many_methods():
    table = summary_of(MANY)
    table.loc[5, ["psnr", "psnr_low", "psnr_high"]] = np.inf
    texts = [text.get_text() for text in pareto.draw(table).axes[0].texts]
    assert "not drawn: 1 at infinity" in texts


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="psnr_low"), "lack columns.*'psnr_low'"),
        (lambda table: table.drop(columns="reference"), "lack columns.*'reference'"),
        (lambda table: table[:0], "no rows"),
        (lambda table: table[1:], "needs the run 'full'"),
        (lambda table: table[:1], "at least one other"),
        (lambda table: table.assign(speedup=[1.0] * 12 + [np.nan]), "no speedup of runs"),
    ],
)
def test_pareto_refuses_a_faulty_table(summary, spoil, message):
    with pytest.raises(ValueError, match=message):
        pareto.draw(spoil(summary))


def test_ticks_keep_apart():
    assert pareto.spread([18, 7, 9, 12, 12], 1.12) == [7, 9, 12, 18]
    assert pareto.spread([1, 1.5, 2, 3], 1.4) == [1, 1.5, 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="ssim_low"), "lack columns.*'ssim_low'"),
        (lambda table: table.assign(ssim=[1.0] * 12 + [np.nan]), "no ssim of runs"),
    ],
)
def test_metrics_refuse_a_faulty_table(summary, spoil, message):
    with pytest.raises(ValueError, match=message):
        metrics.draw(spoil(summary))


# ---- Samples


def test_samples_select_the_reference_first_and_one_run_of_each_method(scores):
    shown = samples.select(scores, [FULL, *METHOD_LABELS], 4, [2, 0])
    assert list(shown["prompt_index"]) == [2] * 4 + [0] * 4
    assert list(shown["run"]) == [FULL, *(f"{label}-04" for label in METHOD_LABELS)] * 2
    other = scores.assign(reference="FORA-04")
    assert list(samples.select(other, [FULL, "FORA", OURS], 4, [1])["run"]) == [
        "FORA-04", FULL, f"{OURS}-04",
    ]  # fmt: skip


def images_of(axes):
    return [image.get_array() for image in axes.images]


def test_samples_draw_the_images_and_their_scores(scores):
    shown = samples.select(scores, [FULL, *METHOD_LABELS], 4, [2, 0])
    psnr = samples.psnr_of(shown)
    assert np.isnan(psnr[:, 0]).all()
    images = samples.read_images(shown["image"]).reshape(2, 4, 8, 8, 3)
    figure = samples.draw(images, [FULL, *METHOD_LABELS], ["prompt 2", "prompt $0$"], psnr)
    drawn = np.stack([image for axes in figure.axes for image in images_of(axes)])
    np.testing.assert_array_equal(drawn.reshape(images.shape), images)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    expected = shown["psnr"].replace(np.inf, np.nan).dropna()
    assert {f"{value:.1f} dB" for value in expected} < set(texts)
    heads = [
        f"{letter}  {name}" for letter, name in zip("abcd", [FULL, *METHOD_LABELS], strict=True)
    ]
    assert {"prompt 2", "prompt $0$", *heads} < set(texts)


def noisy(methods, height=64, width=64, seed=0):
    """Return images of two prompts that differ a little from the first of each."""
    draw = np.random.default_rng(seed)
    base = draw.integers(40, 200, (2, 1, height, width, 3))
    noise = draw.integers(0, 4, (2, methods, height, width, 3))
    noise[:, 0] = 0
    return (base + noise).astype(np.uint8)


def test_the_enlarged_part_is_where_a_method_differs_most():
    images = noisy(3)
    images[0, 2, 30:46, 5:21] += 20
    assert samples.zoom_box(images[0], "auto") == (5, 30, 16)
    figure = samples.draw(images, list("abc"), ["x", "y"], zoom="auto")
    left, top, size = samples.zoom_box(images[1], "auto")
    part = images[1, 2, top : top + size, left : left + size]
    assert any(np.array_equal(part, image) for axes in figure.axes for image in images_of(axes))


def test_the_enlarged_part_can_be_stated():
    images = noisy(2, height=32, width=48)
    assert samples.zoom_box(images[0], [40, 10, 8]) == (40, 10, 8)
    for outside in ([41, 10, 8], [0, 25, 8], [0, 0, 0], [-1, 0, 8]):
        with pytest.raises(ValueError, match="does not lie in an image of 48 x 32 pixels"):
            samples.zoom_box(images[0], outside)


def test_differences_are_in_levels_and_share_one_scale():
    images = noisy(3)
    by_hand = np.abs(images[1, 2].astype(int) - images[1, 0].astype(int)).sum(-1) / 3
    np.testing.assert_allclose(samples.differences(images)[1, 2], by_hand, rtol=1e-6)
    figure = samples.draw(images, list("abc"), ["x", "y"], difference=True)
    maps = [image for axes in figure.axes[:-1] for image in axes.images if image.get_cmap().name
            == samples.MAP and image.get_array().ndim == 2]  # fmt: skip
    assert len(maps) == 4, "of two methods and two prompts; the reference differs nowhere"
    assert {image.get_clim() for image in maps} == {(0, samples.limit_of(
        samples.differences(images)))}  # fmt: skip
    assert "levels of 255" in figure.axes[-1].get_xlabel()


def test_many_methods_are_shown_in_blocks():
    assert samples.blocks_of(1) == [[0]]
    assert samples.blocks_of(6) == [list(range(6))]
    blocks = samples.blocks_of(24)
    assert [block[0] for block in blocks] == [0] * 5
    assert [i for block in blocks for i in block[1:]] == list(range(1, 24))
    assert max(map(len, blocks)) <= samples.COLUMNS


@pytest.mark.parametrize("size", [64, 1024])
def test_small_images_are_enlarged_by_whole_numbers(size):
    figure = samples.draw(np.zeros((2, 9, size, size, 3), np.uint8), list("abcdefghi"), ["x", "y"])
    for axes in figure.axes:
        box = axes.get_position()
        width, height = figure.get_size_inches() * 300
        dots = np.array([box.x0 * width, box.y0 * height, box.width * width, box.height * height])
        np.testing.assert_allclose(dots, dots.round(), atol=1e-6)
        if size == 64:
            assert tuple(dots[2:].round()) == (320, 320)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="image"), "lack columns.*'image'"),
        (lambda table: table[:0], "no rows"),
        (lambda table: table[table["run"] != "FORA-04"], r"no image of FORA.*runs of \[3\]"),
        (lambda table: table[(table["run"] != "FORA-04") | (table["prompt_index"] != 0)],
         "no image of prompt 0 by the run FORA-04"),
    ],
)  # fmt: skip
def test_samples_refuse_faulty_scores(scores, spoil, message):
    with pytest.raises(ValueError, match=message):
        samples.select(spoil(scores), ["FORA"], 4, [0])


def test_samples_refuse_what_does_not_fit(scores):
    shown = samples.select(scores, METHOD_LABELS, 4, [0])
    with pytest.raises(ValueError, match=r"FORA-04.*without a score"):
        samples.psnr_of(shown.assign(psnr=shown["psnr"].mask(shown["run"] == "FORA-04")))
    with pytest.raises(ValueError, match="nothing to draw"):
        samples.draw(np.zeros((0, 0, 8, 8, 3), np.uint8), [], [])
    with pytest.raises(ValueError, match="images must be"):
        samples.draw(np.zeros((1, 2, 8, 8, 3), np.uint8), ["a"], ["x"])


def test_samples_refuse_an_altered_image(scores, tmp_path):
    scores.to_csv(tmp_path / "scores.csv", index=False)
    arguments = argparse.Namespace(
        scores=tmp_path / "scores.csv", methods=[FULL, OURS], budget=4, prompts=[0, 1],
        zoom=["auto"], difference=1, labels=[], setting="", out=[tmp_path / "a.png"],
    )  # fmt: skip
    samples.main(arguments)
    assert (tmp_path / "a.png").is_file()
    image = tmp_path / f"{OURS}-04-1.png"
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=f"{OURS}-04-1.png: missing or altered"):
        samples.main(arguments)


def test_of_very_many_methods_the_best_are_shown(scores):
    assert samples.best(scores, 4) == [FULL, *METHOD_LABELS]
    more = [scores]
    for i in range(20):
        rows = scores[scores["run"] == "FORA-04"]
        more.append(rows.assign(method=f"m{i:02d}", run=f"m{i:02d}-04", psnr=50.0 + i))
    shown = samples.best(pd.concat(more), 4)
    assert shown == [FULL, FEWER_STEPS, OURS, *(f"m{i:02d}" for i in range(12, 20))]


# ---- Strip


@pytest.fixture
def of_peers(scores):
    """Scores of two peers and of fewer steps, which take four sampler steps."""
    peers = scores[scores["run"] == "FORA-04"].assign(method="worse", run="worse-04", psnr=20.0)
    table = pd.concat([scores, peers]).reset_index(drop=True)
    steps = table["full_steps"].where(table["method"] == FEWER_STEPS, STEPS)
    return table.assign(num_steps=steps)


def test_strip_shows_the_full_run_ours_the_best_peer_and_fewer_steps(of_peers):
    columns = strip.columns_of(of_peers, 4)
    assert [column.method for column in columns] == [FULL, OURS, "FORA", FEWER_STEPS]
    assert [column.remark for column in columns] == [
        "the reference", "this project", "the best other cache", "plain sampling",
    ]  # fmt: skip
    assert [column.steps for column in columns] == [
        "12 full steps", "4 full steps", "4 full steps", "4 steps",
    ]  # fmt: skip
    text = strip.describe(columns, 3, "a model")
    assert text.startswith("a model. PSNR to the full run; means over 3 prompts: EigenCache ")
    alone = of_peers[of_peers["method"].isin([FULL, "FORA"])]
    assert [column.method for column in strip.columns_of(alone, 4)] == [FULL, "FORA"]
    other = strip.columns_of(of_peers, 4, ["worse", "FORA"])
    assert [column.method for column in other] == [FULL, "FORA", OURS, FEWER_STEPS]
    with pytest.raises(ValueError, match="no method has a run of 5 full steps"):
        strip.columns_of(of_peers, 5)


def test_strip_draws_the_images_and_their_scores(of_peers, tmp_path):
    of_peers.to_csv(tmp_path / "scores.csv", index=False)
    arguments = argparse.Namespace(
        scores=tmp_path / "scores.csv", budget=4, prompts=[0, 2], ours=[OURS], labels=[],
        setting="a model", out=[tmp_path / "a.png"],
    )  # fmt: skip
    strip.main(arguments)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 2100
    columns = strip.columns_of(of_peers, 4)
    shown = of_peers[of_peers["run"].isin([FULL, *(f"{c.method}-04" for c in columns)])]
    shown = shown[shown["prompt_index"].isin([0, 2])].sort_values("prompt_index")
    images = noisy(4)
    figure = strip.draw(images, columns, ["prompt 0", "prompt 2"], np.full((2, 4), 41.25))
    drawn = [image for axes in figure.axes for image in images_of(axes)]
    np.testing.assert_array_equal(np.stack(drawn[::2]), images[0])
    assert sum(text.get_text().startswith("41.2 dB, ") for text in figure.texts) == 8
    heads = [text.get_text() for text in figure.texts if text.get_weight() == "bold"]
    assert [head for head in heads if head] == [
        "a  Full run",
        f"b  {OURS}",
        "c  FORA",
        f"d  {FEWER_STEPS}",
    ]
    assert faulty_texts(figure) == []


def test_strip_of_one_method_with_a_long_name_fits(of_peers):
    name = "a-label-of-a-hundred-letters-" * 3
    columns = [strip.Column(name, "a remark of some length " * 3, "4 full steps", 30.0)]
    figure = strip.draw(noisy(1), columns, ["a long prompt " * 30] * 2, np.full((2, 1), 41.25))
    assert faulty_texts(figure) == []


# ---- Plans and schedules


def test_plans_draw_the_mean_weights_of_each_gap(made_plans):
    figure = plans.draw(made_plans)
    for axes, (label, plan), letter in zip(figure.axes, made_plans.items(), "ab", strict=True):
        assert axes.get_title("left") == f"{letter}  {label}"
        names, cells = plans.by_gap(plan)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == names
        np.testing.assert_array_equal(axes.images[0].get_array(), np.ma.masked_invalid(cells))
        written = [float(text.get_text().replace("\u2212", "-")) for text in axes.texts]
        np.testing.assert_allclose(written, cells[np.nan_to_num(cells) != 0], atol=0.051)


def test_weights_of_a_gap_are_counted_by_the_timesteps_of_its_steps():
    full, weights = np.zeros(6, bool), np.zeros((6, 6))
    full[[0, 1, 4]] = True
    weights[2, [0, 1]], weights[3, [0, 1]] = (-1, 2), (-3, 4)
    weights[5, [0, 1, 4]] = 0.5, -1, 1.5
    plan = Plan(full, weights, np.array([1000.0, 900, 800, 500, 400, 300]), "output")
    names, cells = plans.by_gap(plan)
    assert names == ["2\N{EN DASH}3", "5"]
    # Step 2 covers 300 of 400 timesteps, step 3 the other 100.
    np.testing.assert_allclose(cells, [[2.5, -1.5, np.nan], [1.5, -1, 0.5]])


def test_weights_of_old_steps_share_the_last_column():
    full, weights = np.ones(10, bool), np.zeros((10, 10))
    full[9] = False
    weights[9, :9] = np.arange(1, 10)
    _, cells = plans.by_gap(Plan(full, weights, np.linspace(1000, 100, 10), "output"))
    np.testing.assert_allclose(cells, [[9, 8, 7, 6, 5, 1 + 2 + 3 + 4]])


def test_a_few_large_weights_do_not_pale_the_others():
    cells = np.append(np.linspace(-1, 1, 99), 40.0)
    assert plans.limit([cells]) <= 1
    assert plans.limit([np.array([0.5, -2, np.nan])]) == 2
    assert plans.limit([np.zeros(3)]) == 1


def test_plans_of_many_streams_are_drawn_as_their_mean(made_plans):
    one = made_plans["TaylorSeer"]
    many = Plan(
        one.full, np.stack([one.weights, 3 * one.weights]), TIMESTEPS, "modules", ("a", "b")
    )
    figure = plans.draw({"x": many})
    _, cells = plans.by_gap(one)
    drawn = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn.filled(0), 2 * np.nan_to_num(cells))
    assert "Means over streams: x (2 streams)." in said(figure)


def test_plans_of_very_many_gaps_have_a_colour_bar_instead_of_numbers():
    timesteps = np.linspace(1000, 1, 100)
    axes, *_, bar = plans.draw({"x": METHODS["TaylorSeer"].plan(51, timesteps)}).axes
    assert not axes.texts and bar.get_ylabel() == "weight"


def test_a_plan_of_full_steps_alone_has_no_gaps(made_plans):
    whole = Plan(np.ones(STEPS, bool), np.zeros((STEPS, STEPS)), TIMESTEPS, "output")
    first, second = plans.draw({"all": whole, "FORA": made_plans["FORA"]}).axes
    assert not first.images and second.images
    assert faulty_texts(plans.draw({"all": whole})) == []


def test_plans_refuse_what_cannot_share_axes(made_plans):
    with pytest.raises(ValueError, match="no plans"):
        plans.draw({})
    other = METHODS["FORA"].plan(5, TIMESTEPS[:-1])
    with pytest.raises(ValueError, match="differ in their steps"):
        plans.draw(made_plans | {"other": other})


def test_schedules_draw_a_tick_for_each_full_step(made_plans):
    ours = METHODS["FORA"].plan(3, TIMESTEPS)
    rows = {**{label: [plan, ours] for label, plan in made_plans.items()}, OURS: [ours]}
    axes = schedules.draw(rows).axes[0]
    ticks = [bars.get_segments() for bars in axes.collections if len(bars.get_segments()) > 1]
    drawn = [tuple(int(tick[0][0]) for tick in row) for row in ticks]
    # FORA and TaylorSeer choose the same steps, and share their rows; fewer steps come first.
    assert drawn == [ours.full_steps, made_plans["FORA"].full_steps, ours.full_steps]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["FORA, TaylorSeer", "3", "5", OURS, "3"]
    labels = [text.get_text() for text in axes.child_axes[0].get_xticklabels()]
    at = [int(tick) for tick in axes.child_axes[0].get_xticks()]
    assert labels == [f"{TIMESTEPS[step]:.0f}" for step in at] and len(at) > 3


def test_schedules_refuse_what_cannot_share_axes(made_plans):
    with pytest.raises(ValueError, match="no plans"):
        schedules.draw({"FORA": []})
    other = METHODS["FORA"].plan(5, TIMESTEPS[:-1])
    with pytest.raises(ValueError, match="differ in their timesteps"):
        schedules.draw({"FORA": [made_plans["FORA"], other]})


# ---- Kernel


def test_kernel_draws_the_matrix_and_its_spectrum(kernels):
    matrix = kernels["output.full.second-moment"].matrix()
    left, middle, _, *_ = kernel.draw(kernels).axes
    sizes = np.sqrt(np.diag(matrix))
    apart = np.maximum(1 - matrix / np.outer(sizes, sizes), kernel.CLOSEST)
    np.testing.assert_allclose(left.images[0].get_array(), apart, atol=1e-12)
    shares = np.linalg.eigvalsh(matrix)[::-1] / np.trace(matrix)
    values, rest, *marks = middle.get_lines()
    np.testing.assert_allclose(values.get_ydata(), shares, rtol=1e-3)
    kept = 1 - np.cumsum(shares)[: len(rest.get_ydata())]
    np.testing.assert_allclose(rest.get_ydata(), kept, rtol=1e-6, atol=1e-12)
    for line, share in zip(marks, kernel.KEPT, strict=True):
        rank = line.get_xdata()[0]
        assert shares[:rank].sum() >= share > shares[: rank - 1].sum()


@pytest.mark.parametrize("steps", [4, 20, 50])
@pytest.mark.parametrize("roughness", [0.0, 0.3])
def test_kernel_has_its_legend_where_it_covers_no_curve(steps, roughness):
    timesteps = np.linspace(1000, 50, steps)
    made = kernel_of(random_trajectories(timesteps, roughness=roughness), timesteps)
    figure = kernel.draw({"output.full.second-moment": made})
    assert not [text for text in faulty_texts(figure) if "rank" in text and "%" not in text]
    axes = figure.axes[1]
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_kernel_draws_eigenvectors_with_a_settled_sign(kernels):
    matrix = kernels["output.full.second-moment"].matrix()
    shares, vectors = kernel.spectrum(matrix)
    np.testing.assert_allclose(matrix @ vectors, vectors * shares * np.trace(matrix), atol=1e-9)
    assert (vectors.max(0) == np.abs(vectors).max(0)).all()
    right = kernel.draw(kernels).axes[2]
    curves = {line.get_label(): line.get_ydata() for line in right.get_lines()}
    for i in range(kernel.VECTORS):
        np.testing.assert_array_equal(curves[str(i + 1)], vectors[:, i])


def test_kernel_draws_a_row_each_and_names_it(kernels):
    figure = kernel.draw(kernels)
    rows = [part.get_suptitle() for part in figure.subfigs]
    assert rows == ["Tap output, full features, second moment",
                    "Tap modules, full features, cosine, mean of 2 streams"]  # fmt: skip
    titles = [axes.get_title("left")[0] for axes in figure.axes if axes.get_title("left")]
    assert titles == list("abcdef")


def test_kernel_draws_how_outputs_answer_errors_below_the_rows(kernels):
    steps = np.arange(len(TIMESTEPS))
    seen = np.stack([np.ones(len(steps)), 0.1 * steps - 0.3, np.square(0.2 * steps)])
    name = "output.full.second-moment"
    answered = kernels | {name: replace(kernels[name], responses=seen)}
    figure = kernel.draw(answered)
    axes = figure.axes[-1]
    assert [part.get_suptitle() for part in figure.subfigs][-1] == "Tap output"
    assert axes.get_title("left").startswith("g ")
    curves = lines_of(axes)
    for label, values in zip(("pull", "scatter"), answered[name].response, strict=True):
        np.testing.assert_array_equal(curves[label].get_ydata(), values)
    assert not faulty_texts(figure)


def test_kernel_refuses_what_is_none(kernels):
    with pytest.raises(ValueError, match="no kernels"):
        kernel.draw({})
    with pytest.raises(ValueError, match="positive"):
        kernel.spectrum(np.zeros((3, 3)))


# ---- All of them


SETTING = "a-model-with-a-name, 1024 x 1024 pixels, 50 sampler steps, 200 evaluation prompts"


def figures_of(kernels, made_plans, labels):
    """Return every figure of some methods, by name."""
    table = summary_of(labels)
    rows = {label: [METHODS["FORA"].plan(k, TIMESTEPS) for k in (3, 5)] for label in labels}
    images = np.concatenate([noisy(len(labels))[:1]] * 2)
    psnr = np.full((2, len(labels)), 43.21)
    return {
        "pareto": pareto.draw(table, inner=labels, setting=SETTING),
        "budget": pareto.draw(table, cost=pareto.STEPS, inner=labels),
        "metrics": metrics.draw(table),
        "samples": samples.draw(images, labels, ["a long prompt of a hat"] * 2, psnr, "auto", True),
        "plans": plans.draw({label: made_plans["FORA"] for label in labels}),
        "schedules": schedules.draw(rows),
        "kernel": kernel.draw(kernels),
    }


NINE = [FEWER_STEPS, "FORA", "TaylorSeer-1", "TaylorSeer-2", "HiCache", "TaylorSeer-1-output",
        "EigenCache-published", "EigenCache-design", OURS]  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(METHOD_LABELS, id="three"),
        pytest.param(NINE, marks=pytest.mark.slow, id="nine"),
        pytest.param(MANY, marks=pytest.mark.slow, id="many"),
    ],
)
def test_figures_fit_two_columns_and_no_text_overlaps_another(kernels, made_plans, labels):
    figures = figures_of(kernels, made_plans, labels)
    widths = {name: figure.get_size_inches()[0] for name, figure in figures.items()}
    assert max(widths.values()) <= 7.001, widths
    found = {name: faulty_texts(figure) for name, figure in figures.items()}
    assert found == {name: [] for name in found}


def test_faulty_texts_are_found():
    figure = Figure(figsize=(2, 1))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.5, "two")
    figure.text(0.95, 0.1, "a long one")
    assert faulty_texts(figure) == ["'a long one' leaves the page", "'one' and 'two' overlap"]


def test_files_state_their_title_and_nothing_of_the_run(summary, tmp_path):
    save(pareto.draw(summary), [tmp_path / "a.png", tmp_path / "a.pdf"])
    title = "Image quality against measured speed-up"
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"Title": title, "Software": "EigenCache"}
    about = (tmp_path / "a.pdf").read_bytes()
    found = re.findall(rb"/(\w+) \(([^)]*)\)", re.search(rb"<<([^<]*/Title[^>]*)>>", about)[1])
    assert dict(found) == {b"Title": title.encode(), b"Creator": b"EigenCache"}


@pytest.mark.slow
def test_files_repeat_to_the_byte(tmp_path, monkeypatch, kernels, made_plans):
    written = []
    for epoch in ("0", "1700000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        files = {}
        for name, figure in figures_of(kernels, made_plans, METHOD_LABELS).items():
            paths = [tmp_path / f"{name}.pdf", tmp_path / f"{name}.png"]
            save(figure, paths)
            files |= {path.name: path.read_bytes() for path in paths}
        written.append(files)
    assert written[0].keys() == written[1].keys()
    for name, content in written[0].items():
        assert content == written[1][name], name
        assert content.startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"\.pdf or \.png"):
        save(Figure(), [tmp_path / "a.png", tmp_path / "a.svg"])
    assert not list(tmp_path.iterdir())


def test_looks_follow_the_order_and_differ():
    labels = [FULL, FEWER_STEPS, *(f"method {i}" for i in range(30)), OURS]
    drawn = looks(labels)
    assert FULL not in drawn
    assert drawn == looks(labels[1:]), "the full run takes no turn"
    seen = {(to_hex(k["color"]), k["marker"], str(k["linestyle"])) for k in drawn.values()}
    assert len(seen) == len(drawn)
    assert drawn[FEWER_STEPS]["linestyle"] != "-"
    assert drawn[OURS]["linewidth"] > 1


def test_looks_of_those_that_do_not_stand_out_are_grey_and_differ():
    labels = [*(f"method {i}" for i in range(20)), OURS]
    drawn = looks(labels, {OURS, "method 3"})
    assert drawn["method 3"] == looks(labels)["method 3"], "the same as where all stand out"
    muted = [drawn[label] for label in labels if label not in (OURS, "method 3")]
    assert len({look["color"] for look in muted}) == 1
    assert len({(look["marker"], look["markerfacecolor"]) for look in muted}) == len(muted)
    assert all(look["zorder"] < drawn["method 3"]["zorder"] for look in muted)


def test_the_first_reference_is_the_one_of_the_first_row(summary):
    both = pd.concat([summary.assign(reference="b"), summary.assign(reference="a")])
    rows, name = of_first_reference(both)
    assert name == "b" and len(rows) == len(summary) and set(rows["reference"]) == {"b"}


def test_wrapped_text_loses_nothing_unless_told():
    text = "a rather long prompt that costs $5 or $6"
    assert wrapped(text, 0.8, 6.5).split() == text.split()
    assert wrapped(text, 10, 6.5) == text
    short = wrapped(text, 0.8, 6.5, lines=2)
    assert short.count("\n") == 1 and short.endswith("…")


@pytest.mark.parametrize(
    "text",
    [
        "", "a dog", " a  b ", "EigenCache-published at the output", "wide " * 12, "w" * 60,
        "-" * 50, "iiii llll " * 6, "a-b-c-d-e-f-g-h-i-j-k-l-m-n-o-p", "supercalifragilistic, more",
    ],
)  # fmt: skip
@pytest.mark.parametrize("lines", [None, 1, 3])
def test_no_wrapped_line_is_too_wide_and_no_word_more_would_fit(text, lines):
    made = wrapped(text, 0.8, 6.5, lines).split("\n")
    assert all(inches(line, 6.5) <= 0.8 for line in made if line)
    assert lines is None or len(made) <= lines
    if lines is None:
        assert "".join(made).replace(" ", "") == text.replace(" ", "")
        for line, after in pairwise(made):
            (word, *_) = re.findall(r"[^\s-]+-*|-+", after)
            assert inches(f"{line}{'' if line.endswith('-') else ' '}{word}", 6.5) > 0.8


def test_long_text_is_wrapped_at_once():
    """A prompt of 20,000 letters took minutes, since every length of a line was tried."""
    begun = time.process_time()
    for text in ("a cat on a hill " * 1250, "w" * 20_000, "-" * 20_000):
        assert wrapped(text, 1.2, 6.5, 8).count("\n") == 7
    assert time.process_time() - begun < 10


def test_figures_do_not_load_torch():
    code = (
        "import sys, reproduction.figures.budget, reproduction.figures.metrics, "
        "reproduction.figures.strip, reproduction.figures.plans, reproduction.figures.schedules, "
        "reproduction.figures.kernel; assert 'torch' not in sys.modules"
    )
    # A fresh process, since other tests load it.
    subprocess.run([sys.executable, "-c", code], check=True)
