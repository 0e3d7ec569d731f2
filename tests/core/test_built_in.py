"""Built-in plans: the sources that the package carries, the design from them, and the budget."""

import time
from pathlib import Path

import numpy as np
import pytest

from eigencache import built_in
from eigencache.built_in import (
    FILE,
    KINDS,
    Budget,
    Design,
    Source,
    fitting,
    nearest,
    save_sources,
    sources,
)
from eigencache.kernel import KernelError


def levels_of(steps, shift=3.0):
    """Return noise levels `[T + 1]` of flow matching."""
    even = np.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


def test_the_package_has_several_models_at_several_guidance_scales():
    found = sources()
    models = {source.model for source in found}
    for kind in KINDS:
        assert len({source.model for source in fitting(kind, found)}) >= 3
    for model in models:
        assert len({s.guidance for s in found if s.model == model}) >= 3
    size = Path(built_in.__file__).with_name(FILE).stat().st_size
    assert size < 1_000_000


def test_sources_are_read_as_they_were_written(tmp_path):
    draw = np.random.default_rng(0)
    runs = [(draw.normal(size=(5, 40)), draw.normal(size=(5, 40))) for _ in range(3)]
    response = np.linspace(-1, 1, 5), np.linspace(3, 2, 5)
    source = Source.of_runs("model", "flow", 2.5, np.linspace(1, 0.1, 5), runs, response)
    gram = source.clean @ source.noise.T
    expected = sum(c @ n.T / np.square(n - c).sum(1).mean() / 3 for c, n in runs)
    assert np.allclose(gram, expected)
    save_sources(tmp_path / "sources.safetensors", [source, source])
    read = sources(tmp_path / "sources.safetensors")
    told = [(s.model, s.predicts, s.guidance) for s in read]
    assert told == [("model", "flow", 2.5)] * 2
    for name in ("sigmas", "clean", "noise", "pull", "scatter"):
        assert np.allclose(getattr(read[1], name), getattr(source, name), atol=1e-6)


def test_a_run_counts_the_same_whatever_its_scale():
    draw = np.random.default_rng(0)
    runs = [(draw.normal(size=(5, 40)), draw.normal(size=(5, 40))) for _ in range(2)]
    scaled = [runs[0], tuple(100 * part for part in runs[1])]
    response = np.zeros(5), np.zeros(5)
    one, other = (
        Source.of_runs("m", "flow", 1, np.linspace(1, 0.1, 5), r, response) for r in (runs, scaled)
    )
    assert np.allclose(one.clean @ one.noise.T, other.clean @ other.noise.T)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "sources.safetensors").write_bytes(b"no kernels")
    with pytest.raises(KernelError, match="damaged"):
        sources(tmp_path / "sources.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "steps",
    [20, pytest.param(28, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("shift", [1.0, pytest.param(6.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_plan_has_its_budget_and_bounded_weights(kind, steps, shift, guidance):
    levels = levels_of(steps, shift)
    design = Design(kind, levels, 1000 * levels[:-1], guidance)
    for budget in (1, 2, 5, 9, steps - 1, steps) if steps == 20 else (5, 9):
        plan = design.plan(budget)
        assert plan.full.sum() == budget
        assert np.abs(plan.weights).max() < 12
        if kind != "v_prediction":  # the noise is in every output with a share of one
            assert np.allclose(plan.weights.sum(1)[~plan.full], 1)


@pytest.mark.parametrize(
    ("guidance", "scales"), [(0, {1}), (1.3, {1}), (1.5, {2}), (3.5, {3}), (4.5, {5}), (7.5, {5})]
)
def test_sources_are_those_at_the_nearest_guidance(guidance, scales):
    models = fitting("flow", sources())
    found = nearest(guidance, models)
    assert {source.guidance for source in found} == scales
    assert [s.model for s in found] == list(dict.fromkeys(s.model for s in models))
    levels = levels_of(20)
    assert Design("flow", levels, levels[:-1], guidance).guidance == max(scales)


def test_a_model_with_no_run_nearby_still_counts():
    models = [s for s in fitting("flow", sources()) if s.model != "emoji-flux" or s.guidance == 5]
    assert len(nearest(1, models)) == len({s.model for s in models})


def test_weights_of_v_keep_its_share_of_the_noise():
    levels = levels_of(28)
    plan = Design("v_prediction", levels, levels[:-1], 3.0).plan(9)
    clean, noise = 1 - levels[:-1], levels[:-1]
    share = np.maximum(clean / np.hypot(clean, noise), built_in.LEAST)
    assert np.allclose((plan.weights @ share)[~plan.full], share[~plan.full])


def test_what_a_source_never_met_is_not_taken_for_known(monkeypatch):
    """Of constant outputs any two would tell all others, without an error."""
    known = [s for s in sources() if s.model == "emoji-v"]
    betas = np.linspace(1e-4, 0.02, 1000)
    squares = np.cumprod(1 - betas)[980::-20]
    levels = np.append(np.sqrt(1 - squares) / (np.sqrt(squares) + np.sqrt(1 - squares)), 0)
    assert known[0].beyond(levels[:-1])[:5].all() and not known[0].beyond(known[0].sigmas).any()

    def largest():
        plan = Design("v_prediction", levels, levels[:-1], 3.0, known).plan(13)
        return np.abs(plan.weights).max()

    assert largest() < 15
    monkeypatch.setattr(built_in, "UNKNOWN", 0.0)
    assert largest() > 30


def test_it_takes_milliseconds():
    levels = levels_of(50)
    Design("flow", levels, levels[:-1], 3.0).plan(9)  # reads the file
    start = time.process_time()
    Design("flow", levels, levels[:-1], 3.0).plan(9)
    assert time.process_time() - start < 1


def test_a_second_order_sampler_sees_levels_twice():
    levels = np.repeat(levels_of(10), 2)[1:-1]  # 1, then each twice, and 0
    plan = Design("flow", levels, 1000 * levels[:-1], 3.0).plan(6)
    assert plan.full.sum() == 6
    assert np.isfinite(plan.weights).all()


def test_part_of_the_noise_levels_is_enough():
    levels = levels_of(50)
    for part in (levels[20:], levels[:21]):  # image to image; the first of two models
        plan = Design("flow", part, 1000 * part[:-1], 3.0).plan(7)
        assert plan.full.sum() == 7


def test_weights_before_a_step_do_not_depend_on_what_is_full_after_it():
    levels = levels_of(20)
    design = Design("flow", levels, levels[:-1], 3.0)
    full = design.plan(6).full.copy()
    step = int(np.flatnonzero(~full)[8])
    before = design.with_steps(full).weights
    full[step] = True
    after = design.with_steps(full)
    gap = int(np.flatnonzero(full[:step])[-1])  # begins here; its correction is spread over it
    assert np.array_equal(before[:gap], after.weights[:gap])
    assert after.full[step] and not after.weights[step].any()


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({}, "just one of"),
        ({"full_steps": 9, "speedup": 5}, "just one of"),
        ({"speedup": 5, "psnr": 30}, "just one of"),
        ({"psnr": float("inf")}, "psnr must be a finite number above 0"),
        ({"psnr": "good"}, "psnr must be a finite number"),
        ({"full_steps": 0}, "full_steps must be a whole number of at least 1"),
        ({"full_steps": 4.5}, "full_steps must be a whole number"),
        ({"speedup": 0.5}, "speedup must be a finite number of at least 1"),
        ({"speedup": "fast"}, "speedup must be a finite number"),
    ],
)
def test_what_is_asked_for_must_make_sense(stated, says):
    with pytest.raises(ValueError, match=says):
        Budget(**stated)


def test_a_speedup_is_reached():
    for steps in (20, 28, 50):
        for speedup in (1, 1.5, 2, 5, 7.1, 100):
            full = Budget(speedup=speedup).of(steps)
            assert full == 1 or steps / full >= speedup
            assert full == 1 or steps / (full + 1) < speedup
