"""The solvers that are fitted for the comparison (`benchmarks/peers/fitting`)."""

import itertools
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import arguments_of, tiny_pipeline

from benchmarks import tables
from benchmarks.peers import learned
from benchmarks.peers.compare import compare, sampled
from benchmarks.peers.contestant import Contestant, Study
from benchmarks.peers.figure import draw
from benchmarks.peers.fitting import budcache
from benchmarks.peers.fitting.bns import Bespoke
from benchmarks.peers.fitting.descent import Descent, Lion
from benchmarks.peers.fitting.dss import Searched, at
from benchmarks.peers.fitting.gits import IPNDM, cheapest, gits
from benchmarks.peers.fitting.meter import Meter
from benchmarks.peers.fitting.methods import METHODS, Problem
from benchmarks.peers.fitting.olss import Regression, olss
from benchmarks.peers.fitting.solver import LinearScheduler, Solver, integrate
from benchmarks.peers.fitting.teacher import Teacher
from benchmarks.peers.join import joined
from eigencache.methods import make_plan
from eigencache.predictors import Taylor
from eigencache.runtime import cached
from eigencache.schedules import Steps

pytestmark = pytest.mark.slow

STEPS, BUDGET = 10, 4
SETTINGS = {"num_inference_steps": STEPS, "height": 16, "width": 16}
ALL = torch.arange(6)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def cases():
    return [(arguments_of(seed), seed) for seed in range(6)]


@pytest.fixture
def teacher(pipe, cases):
    with Meter(pipe.transformer) as meter:
        teacher = Teacher(pipe, cases, SETTINGS)
        teacher.meter = meter
        yield teacher


@pytest.fixture
def problem(pipe, cases, teacher, tmp_path):
    (tmp_path / "method").mkdir()
    log = tmp_path / "method" / f"{BUDGET}.log"
    return Problem(pipe, cases, 7, SETTINGS, teacher.meter, 0.2, log, {})


def final(teacher, solver):
    """Return the final latents of all images."""
    arrays = (torch.tensor(a).float() for a in (solver.sigmas, solver.start, solver.weights))
    with torch.no_grad():
        return integrate(partial(teacher.velocity, ALL), teacher.latents[0], *arrays)[-1]


def applied(solver):
    """Return a contestant that samples by a solver."""
    return Contestant("", "", lambda pipe: scheduled(pipe, solver), None)


class scheduled:
    def __init__(self, pipe, solver):
        self.pipe, self.solver = pipe, solver

    def __enter__(self):
        self.own = self.pipe.scheduler
        self.pipe.scheduler = LinearScheduler.by(self.own, self.solver)

    def __exit__(self, *_):
        self.pipe.scheduler = self.own


def test_the_teacher_is_the_full_run(pipe, cases, teacher):
    assert teacher.latents.shape[:2] == (STEPS + 1, len(cases))
    assert teacher.sigmas[0] == 1 and teacher.sigmas[-1] == 0
    for step in (0, 4, STEPS - 1):
        with torch.no_grad():
            again = teacher.velocity(ALL, teacher.latents[step], teacher.sigmas[step])
        torch.testing.assert_close(again, teacher.outputs[step], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        final(teacher, Solver.euler(teacher.sigmas)), teacher.latents[-1], rtol=1e-4, atol=1e-5
    )
    assert teacher.meter.calls == (STEPS + 3 + STEPS) * len(cases)


def test_a_plan_is_a_linear_solver(pipe, cases):
    """One formula for all: our plan, as a solver of BNS's form, makes the same images."""
    full, _ = sampled(pipe, cases, SETTINGS)
    plan = make_plan(Steps([0, 1, 4, 7]), Taylor(order=1), pipe.scheduler.timesteps)
    with cached(pipe, plan), Meter(pipe.transformer) as meter:
        ours, _ = sampled(pipe, cases, SETTINGS)
    assert meter.calls == 4 * len(cases)  # what the cache answers costs nothing
    theirs, full_steps = sampled(pipe, cases, SETTINGS, applied(Solver.from_plan(plan)))
    assert full_steps == 4
    assert (ours - theirs).abs().max() < 1e-3 * (ours - full).abs().max()


def test_euler_is_a_linear_solver(pipe, cases, problem):
    fewer, _ = sampled(pipe, cases, SETTINGS | {"num_inference_steps": BUDGET})
    same, full_steps = sampled(pipe, cases, SETTINGS, applied(problem.euler(BUDGET)))
    assert full_steps == BUDGET
    torch.testing.assert_close(fewer, same, rtol=0, atol=1e-4)


def test_bns_starts_where_it_is_told(problem):
    start = problem.euler(BUDGET)
    for free in (True, False):
        made = Bespoke(start, free).solver()
        for name in ("sigmas", "start", "weights"):
            np.testing.assert_allclose(getattr(made, name), getattr(start, name), atol=1e-6)


@pytest.mark.parametrize("free", [True, False])
def test_bns_gains_on_images_that_are_held_out(problem, teacher, free):
    start = problem.euler(BUDGET)
    model = Bespoke(start, free)
    descent = Descent(ALL[:3], ALL[3:], rates=(1e-2, 1e-3), trial=4, every=2, patience=6, limit=20)
    told = descent.train(model, teacher)
    assert told["held_out_db"] > told["begun_at_db"] + 1
    reached = teacher.decibels(ALL, final(teacher, model.solver()))[3:].mean()
    assert float(reached) == pytest.approx(told["held_out_db"], abs=0.05)
    sigmas = model.solver().sigmas
    assert (np.diff(sigmas) < 0).all() and sigmas[0] == pytest.approx(1)
    assert np.allclose(sigmas, start.sigmas, atol=1e-6) is not free
    assert teacher.meter.backward_calls >= told["iterations"] * 3 * BUDGET
    assert [gain for _, gain in told["trace"]] and told["trace"][-1][0] <= teacher.meter.calls * 2


def test_lion_moves_by_its_rate_against_the_gradient():
    weights = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = Lion([weights], lr=0.1)
    (weights * torch.tensor([3.0, -5.0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.tensor([0.9, -1.9]))


def test_dss_starts_from_euler_and_keeps_its_sums(problem, teacher):
    start = problem.euler(BUDGET)
    model = Searched(start)
    np.testing.assert_allclose(model.solver().weights, start.weights, atol=1e-6)
    model.coefficients.data.normal_()
    sigmas, steps = (array.detach() for array in model.arrays())
    torch.testing.assert_close(steps.sum(1), sigmas.diff(), rtol=0, atol=1e-5)
    assert (steps[-1, : BUDGET - 2] == 0).all()  # few steps draw on one earlier output at the end
    middle = float(teacher.sigmas[3] + teacher.sigmas[4]) / 2
    torch.testing.assert_close(at(teacher, ALL, middle), teacher.latents[3:5].mean(0))


def test_olss_of_all_steps_is_the_full_run(teacher):
    solver, steps = olss(teacher, STEPS)
    assert steps == [*range(STEPS)]
    gap = (final(teacher, solver) - teacher.latents[-1]).abs().max()
    assert gap < 1e-3 * teacher.latents[-1].abs().max()


def test_olss_is_least_squares(teacher):
    solver, steps = olss(teacher, BUDGET)
    regression = Regression(teacher)
    assert len(steps) == BUDGET and steps[0] == 0
    latents, outputs = teacher.latents.double(), teacher.outputs.double()
    for i, target in enumerate([*steps[1:], STEPS]):
        made = solver.start[i] * latents[0]
        for weight, step in zip(solver.weights[i], steps[: i + 1], strict=False):
            made = made + weight * outputs[step]
        error = float((made - latents[target]).square().mean())
        assert error == pytest.approx(regression.solve(0, steps[: i + 1], target)[1], rel=1e-3)
        residual = (made - latents[target]).flatten()
        for step in steps[: i + 1]:  # what is left is at right angles to all that is drawn on
            other = outputs[step].flatten()
            size = float(residual.norm() * other.norm())
            assert abs(float(residual @ other)) < 1e-6 * size + 1e-9


def test_gits_is_the_cheapest_way():
    cost = np.triu(np.random.default_rng(0).random((7, 7)), 1)
    cost[np.tril_indices(7)] = np.inf
    jumps, growth = 3, 1.15

    def total(points):
        return sum(growth**k * cost[a, b] for k, (a, b) in enumerate(itertools.pairwise(points)))

    ways = [(0, *middle, 6) for middle in itertools.combinations(range(1, 6), jumps - 1)]
    assert tuple(cheapest(cost, jumps, growth)) == min(ways, key=total)


def test_ipndm_is_exact_for_polynomials():
    """On equal steps, order k integrates a polynomial of degree k - 1."""
    for order, weights in enumerate(IPNDM, 1):
        times = -np.arange(order)
        for degree in range(order):
            assert np.dot(weights, times**degree) == pytest.approx(1 / (degree + 1))


def test_gits_of_all_steps_is_the_full_run(teacher):
    solver, steps = gits(teacher, STEPS, order=1)
    assert steps == [*range(STEPS)]
    np.testing.assert_allclose(solver.weights, Solver.euler(teacher.sigmas).weights)


def test_budcache_of_all_steps_is_the_full_run(teacher):
    sigmas = torch.tensor(teacher.sigmas, dtype=torch.float32)
    with torch.no_grad():
        made = budcache.sampled(teacher, ALL, sigmas, [*range(STEPS)])[-1]
    torch.testing.assert_close(made, teacher.latents[-1], rtol=1e-4, atol=1e-5)


def test_budcache_reuses_the_change_of_all_blocks(pipe, cases, teacher):
    """As our tap of the blocks' sum would: diffusers' FirstBlockCache without its first block."""
    full_steps = [0, 1, 5]
    with torch.no_grad():
        sigmas = torch.tensor(teacher.sigmas, dtype=torch.float32)
        fitted = budcache.sampled(teacher, ALL, sigmas, full_steps)[-1]
    with budcache.reusing(pipe, full_steps):
        made = pipe(
            **{k: torch.cat([c[k] for c, _ in cases]) for k in cases[0][0]}, **SETTINGS,
            generator=[torch.Generator().manual_seed(seed) for _, seed in cases],
            output_type="latent",
        ).images  # fmt: skip
    torch.testing.assert_close(made, fitted, rtol=1e-4, atol=1e-5)
    assert (made - teacher.latents[-1]).abs().max() > 1e-4


def test_budcache_finds_the_best_schedule():
    count, budget, asked = 9, 4, []

    def error(steps):
        asked.append(steps)
        return sum((a - b) ** 2 for a, b in zip(steps, (0, 3, 5, 8), strict=True)) / 100

    assert budcache.search(error, count, budget) == [0, 3, 5, 8]
    assert len(asked) == len(set(asked))  # nothing is sampled twice
    assert all(len(set(steps)) == budget and steps[0] == 0 for steps in asked)


def test_every_method_is_fitted_and_sampled(pipe, cases, tmp_path, monkeypatch):
    """What several fits need is made once, as `fit.py` does; each pays for it."""
    monkeypatch.setattr(budcache, "ROUNDS", 3)
    monkeypatch.setattr(budcache, "CLIMBS", 1)
    costs, shared = {}, {}
    for method, fit in METHODS.items():
        log = tmp_path / method / f"{BUDGET}.log"
        log.parent.mkdir()
        with Meter(pipe.transformer) as meter:
            problem = Problem(pipe, cases, 7, SETTINGS, meter, 0.05, log, shared)
            fitted, told = fit(problem, BUDGET)
        assert problem.used > 0 and meter.calls > 0
        costs[method] = meter.calls, problem.used
        cost = {"prompts": problem.used, "calls": meter.calls, "backward_calls": 0, "seconds": 1}
        log.with_suffix(".json").write_text(json.dumps(cost | told | {"fitted": fitted}))
    contestants = learned.contestants(Study(STEPS, tmp_path, None))
    assert all(contestant.setting(BUDGET + 1) is None for contestant in contestants)
    rows = [*compare(pipe, contestants, [BUDGET], cases, [], SETTINGS, timed=1)]
    assert {row["method"]: (row["fit_calls"], row["fit_prompts"]) for row in rows} == costs
    assert all(row["full_steps"] == BUDGET and row["psnr_float"] > 5 for row in rows)


def test_missing_fits_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.peers\.fit"):
        learned.contestants(Study(STEPS, tmp_path, None))


def test_the_figure_and_the_table_show_what_was_fitted(tmp_path, monkeypatch):
    cases = ("EigenCache", 58.0, 9000), ("OLSS", 57.0, 1600), ("Euler", 41.0, 0)
    rows = [
        {"method": method, "source": "theirs", "budget": budget, "setting": "", "prompts": 24,
         "psnr": psnr, "compute": 0.2, "speedup": 5.0, "cache_memory_mb": 0.1,
         "fit_prompts": 32 * (calls > 0), "fit_calls": calls,
         "fit_backward_calls": calls / 2, "fit_seconds": 8.0}
        for budget in (5, 9)
        for method, psnr, calls in cases
    ]  # fmt: skip
    for name, part in {"a": rows[:4], "b": rows[4:]}.items():
        pd.DataFrame(part).to_csv(tmp_path / name, index=False)
    table = joined([tmp_path / "a", tmp_path / "b"])
    figure = draw(table)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["a  5 full steps", "b  9 full steps"]
    points = {tuple(line.get_xydata()[0]) for line in figure.axes[0].lines[:2]}
    assert points == {(13500, 58), (2400, 57)}
    assert figure.axes[0].lines[2].get_ydata()[0] == 41  # the best without a fit
    monkeypatch.setattr(tables, "PEERS", tmp_path / "peers.csv")
    table.to_csv(tables.PEERS, index=False)
    lines = tables.peers().splitlines()[2:]
    assert lines[0].startswith("| **EigenCache** | ") and "| 13,500 | 8 |" in lines[0]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(table[table["method"] == "Euler"])
