"""The ablations: their configuration, their tables and their figure."""

import argparse
import copy
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import (
    compiled,
    flow_timesteps,
    kernel_of,
    needs_latex,
    random_trajectories,
    snakemake,
)

from eigencache.methods import METHODS
from eigencache.metrics.statistics import mean_interval
from reproduction.config import ConfigError
from reproduction.experiment import Experiment
from reproduction.figures import ablation, calibration
from reproduction.figures._common import save
from reproduction.figures._table import figures
from reproduction.stages.ablation import ablate, main, sheet
from reproduction.tables.tables import read_table, write_table
from reproduction.tables.typeset import MINUS, Cell, latex, markdown

ROOT = Path(__file__).parents[2]
FILE = "workflow/config/ablation.yaml"
FACTORS = {
    "window": {"base": "b", "values": {"a": 1, "b": 2}},
    "kernel of": {"base": "b", "values": {"b": "second moments", "c": "cosines"}},
}
BUDGETS = (3, 5)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return yaml.safe_load((ROOT / FILE).read_text())


@pytest.fixture
def shipped(config):
    return Experiment(config)


# ---- The configuration


def test_every_method_of_the_shipped_ablation_is_shown(shipped):
    shown = {label for part in shipped.config.ablation.values() for label in part.values}
    assert shown == set(shipped.config.methods)


def test_an_ablation_has_its_own_table_and_figures(shipped, config):
    assert {Path(table).name for table in shipped.tables} == {
        "scores.csv", "scores.parquet", "summary.csv",
        "ablation.csv", "ablation.md", "ablation.tex",
    }  # fmt: skip
    wanted = [name for name, figure in figures(shipped).items() if figure.wanted]
    assert wanted == ["ablation", "calibration"]
    del config["ablation"], config["figures"]
    plain = Experiment(config)
    assert not any("ablation." in table for table in plain.tables)
    assert not {"ablation", "calibration"} & figures(plain).keys()


def test_shipped_ablation_is_of_the_default_experiment(config):
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    # It calibrates on more prompts, since how many is one of its factors.
    more = {"num_prompts": max(32, default["calibration"]["num_prompts"])}
    assert config["calibration"] == default["calibration"] | more
    assert config["seed"] == default["seed"] and config["prompts"] == default["prompts"]
    assert set(config["budgets"]) <= set(default["budgets"])
    changed = {key: default["arguments"][key] for key in config["arguments"]}
    assert config["arguments"] == changed


def test_no_two_methods_are_the_same(config):
    specs = [
        METHODS[spec["method"]].parts(9, **options(spec)) for spec in config["methods"].values()
    ]
    taps = [spec.get("tap", METHODS[spec["method"]].tap) for spec in config["methods"].values()]
    assert len(set(map(str, zip(specs, taps, strict=True)))) == len(specs)


OPTIONS = {
    "window": "window",
    "calibration runs": "runs",
    "closed loop: runs": "runs",
    "rank of the kernel": "rank",
    "smooth share (1 run)": "smooth",
    "closed loop: anchors": "anchors",
    "closed loop: sweeps": "sweeps",
    "closed loop: rounds": "rounds",
}


@pytest.mark.parametrize(("factor", "option"), OPTIONS.items())
def test_values_are_those_of_the_options(config, factor, option):
    for label, value in config["ablation"][factor]["values"].items():
        spec = config["methods"][label]
        parts = METHODS[spec["method"]].parts(9, **options(spec))
        (real,) = {getattr(part, option) for part in parts if hasattr(part, option)}
        everything = {"runs": config["calibration"]["num_prompts"], "anchors": "all"}
        everything["rank"] = config["arguments"]["num_inference_steps"]
        assert value == (everything[option] if real is None else real)


def test_closed_loops_are_fitted_on_as_many_runs_as_they_say(config):
    for label in config["ablation"]["closed loop: runs"]["values"]:
        spec = config["methods"][label]
        assert spec["runs"] + spec["held_out"] == config["calibration"]["num_prompts"]


def options(spec):
    return {key: value for key, value in spec.items() if key not in ("method", "tap")}


@pytest.mark.slow
def test_every_plan_of_the_shipped_ablation_can_be_made(shipped):
    timesteps = flow_timesteps(shipped.config.arguments.num_inference_steps)
    trajectories = random_trajectories(timesteps, 2)
    for label in shipped.planned:
        spec = shipped.spec(label)
        tap, features, normalisation, *runs = shipped.kernel(label).split(".")
        streams = ("output",) if tap in ("output", "hidden") else ("a", "b")
        kept = {"tap": tap, "features": features, "normalisation": normalisation}
        runs = int(*runs) if runs else 2
        kernel = kernel_of(list(itertools.islice(itertools.cycle(trajectories), runs)), timesteps,
                           streams, **kept)  # fmt: skip
        for budget in shipped.config.budgets:
            plan = METHODS[spec["method"]].open_loop(
                budget, timesteps, kernel, spec.get("tap"), **options(spec)
            )
            assert plan.full.sum() == budget, label
            assert plan.tap == tap


MISTAKES = [
    ("windows", {"values": {"design": 1, "loop": 2}}, "ablation.windows.base: missing"),
    ("windows", {"base": "design", "values": {"design": 1}}, "ablation.windows.values: .*2 items"),
    ("windows", {"base": "design", "values": {"design": 1, "x": 2}},
     r"ablation.windows.values: 'x' is not one of \['design'"),
    ("windows", {"base": "cosine", "values": {"design": 1, "loop": 2}},
     "ablation.windows.base: 'cosine' is not one of its values"),
    ("windows", {"base": "design", "values": {"design": True, "loop": 2}},
     "ablation.windows.values.design: True is not allowed; it must"),
    ("windows", {"base": "design", "values": {"design": 2, "loop": "2"}},
     "ablation.windows.values: two labels stand for the same value"),
    ("windows", {"base": "design", "values": {"design": 1, "loop": 2}, "unit": "s"},
     "ablation.windows: unknown key 'unit'"),
]  # fmt: skip


@pytest.mark.parametrize(("factor", "part", "message"), MISTAKES)
def test_mistake_names_the_key(config, factor, part, message):
    config = copy.deepcopy(config)
    config["ablation"][factor] = part
    with pytest.raises(ConfigError, match=message):
        Experiment(config)


# ---- The tables


@pytest.fixture
def scores():
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "run": f"{label}-{budget:02d}", "reference": "full", "prompt_index": index,
                "psnr": 40 + draw.normal(),
            }
            for label in "abc"
            for budget in BUDGETS
            for index in range(8)
        ]
    )  # fmt: skip


@pytest.fixture
def summary(scores):
    means = scores.groupby("run")["psnr"].mean()
    rows = [("full", "full", 8, np.inf, 1.0, 1.0, 1.0)]
    rows += [
        (f"{label}-{b:02d}", label, b, means[f"{label}-{b:02d}"], 0.9 + b / 100, b / 10, 8 / b)
        for label in "abc"
        for b in BUDGETS
    ]
    names = ["run", "method", "full_steps", "psnr", "ssim", "seconds", "speedup"]
    table = pd.DataFrame(rows, columns=names).assign(reference="full", frechet_lite0=2.5)
    for name in ("psnr", "ssim", "speedup"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.01, table[name] + 0.02
    return table


GAIN = ["gain", "gain_low", "gain_high"]
COMMANDS = {label: f"snakemake {label}" for label in "abc"}


@pytest.fixture
def table(summary, scores):
    return ablate(summary, scores, FACTORS, COMMANDS)


def test_there_is_a_row_for_each_value_and_budget(table, summary):
    assert list(table["factor"]) == ["window"] * 4 + ["kernel of"] * 4
    assert list(table["value"]) == [*"1122", *["second moments"] * 2, *["cosines"] * 2]
    assert list(table["full_steps"]) == [*BUDGETS] * 4
    of = summary.set_index(["method", "full_steps"])
    for row in table.itertuples():
        for name in ("psnr", "psnr_low", "ssim_high", "frechet_lite0", "seconds", "speedup"):
            assert getattr(row, name) == of.loc[(row.label, row.full_steps), name]
        assert row.command == f"snakemake {row.label}"


def test_gain_is_paired_by_image(table, scores):
    psnr = scores.pivot(index="prompt_index", columns="run", values="psnr")
    row = table[(table["label"] == "c") & (table["full_steps"] == 5)].iloc[0]
    differences = psnr["c-05"] - psnr["b-05"]
    assert row["gain"] == pytest.approx(differences.mean())
    assert tuple(row[GAIN]) == pytest.approx(mean_interval(differences))
    bases = table[table["base"]]
    assert set(bases["label"]) == {"b"} and (bases[GAIN] == 0).all(axis=None)


@pytest.mark.parametrize(
    ("spoil", "factors", "message"),
    [
        (lambda summary: summary, {}, "`ablation` is empty"),
        (lambda summary: summary[summary["method"] != "c"], FACTORS, "no run of 'c'"),
        (lambda summary: summary[summary["run"] != "b-05"], FACTORS, "window: b has no run of 5"),
    ],
)
def test_what_is_missing_is_named(summary, scores, spoil, factors, message):
    with pytest.raises(ValueError, match=message):
        ablate(spoil(summary), scores, factors, COMMANDS)


def test_sheet_says_what_the_csv_says(table):
    found = sheet(table, 8, "full")
    assert list(found.groups) == ["3 full steps", "5 full steps"]
    assert found.heads == [
        "factor", "value", "label", "PSNR to the base (dB)", "PSNR (dB)", "SSIM",
        "Fréchet distance (EfficientNet-lite0)", "seconds", "speed-up",
    ]  # fmt: skip
    rows = pd.concat([table[table["full_steps"] == budget] for budget in BUDGETS])
    factor = ""
    for (_, row), cells in zip(
        rows.iterrows(), itertools.chain(*found.groups.values()), strict=True
    ):
        factor = cells[0].text or factor
        assert factor == row["factor"] and cells[2] == Cell(row["label"])
        assert cells[1] == Cell(row["value"], mark="bold" if row["base"] else "")
        ends = f"[{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]"
        gain = Cell(f"{row['gain']:+.2f}".replace("-", MINUS), ends.replace("-", MINUS))
        assert cells[3] == (Cell("") if row["base"] else gain)
        ends = f"[{row['psnr_low']:.2f}, {row['psnr_high']:.2f}]"
        assert cells[4] == Cell(f"{row['psnr']:.2f}", ends)
        assert cells[6:8] == [Cell("2.500"), Cell(f"{row['seconds']:.3f}")]
        assert cells[8].text == f"{row['speedup']:.2f}" and cells[8].detail
    assert [cells[0].text for cells in found.groups["3 full steps"]] == [
        "window",
        "",
        "kernel of",
        "",
    ]
    assert "over 8 prompts, against the full run" in found.notes[0]


def test_stage_writes_all_tables(tmp_path, summary, scores):
    folder = tmp_path / "results"
    other = {"reference": "b-05", "psnr": 1.0}
    write_table(pd.concat([summary, summary.assign(**other)]), folder / "summary.csv")
    write_table(pd.concat([scores, scores.assign(**other)]), folder / "scores.csv")
    parts = {
        "summary": folder / "summary.csv", "tidy": str(folder / "scores.csv"), "reference": "full",
        "factors": json.dumps(FACTORS), "configfiles": ["some.yaml"], "table": tmp_path / "out.csv",
        "markdown": tmp_path / "out.md", "latex": tmp_path / "out.tex",
    }  # fmt: skip
    main(argparse.Namespace(**parts))
    table = read_table(tmp_path / "out.csv")
    command = f"snakemake {folder}/scores/a.csv --configfile some.yaml --cores all"
    assert table["command"][0] == command and table["base"].dtype == bool
    typeset = sheet(table, 8, "full")
    text = (tmp_path / "out.md").read_text()
    assert text.startswith(markdown(typeset)) and text.endswith(f"\n    {command}\n")
    assert (tmp_path / "out.tex").read_text() == latex(typeset)
    assert table["psnr"].min() > 30


@needs_latex
def test_latex_of_the_ablation_compiles_as_it_is(tmp_path, table):
    table["value"] = table["value"].replace({"1": "10⁻²", "cosines": "50 % & more_"})
    words = compiled(latex(sheet(table, 8, "full")), tmp_path)
    assert "10−2" in words and "50 % & more" in words  # noqa: RUF001
    assert words.count("second moments") == 2


# ---- The figure


def test_figure_draws_the_tables_gains(table):
    figure = ablation.draw(table)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == [f"{letter}  {name}" for letter, name in zip("ab", FACTORS, strict=True)]
    for axes, (factor, part) in zip(figure.axes, FACTORS.items(), strict=True):
        shown = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
        assert shown == [str(value) for value in part["values"].values()]
        drawn = [bars.lines[0] for bars in axes.containers]
        for line, budget in zip(drawn, BUDGETS, strict=True):
            rows = table[(table["factor"] == factor) & (table["full_steps"] == budget)]
            np.testing.assert_allclose(line.get_ydata(orig=False), rows["gain"])
            np.testing.assert_array_equal(np.round(line.get_xdata(orig=False)), range(len(rows)))
        for bars, budget in zip(axes.containers, BUDGETS, strict=True):
            rows = table[(table["factor"] == factor) & (table["full_steps"] == budget)]
            ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
            np.testing.assert_allclose(ends, rows[["gain_low", "gain_high"]])
        low, high = axes.get_ylim()
        assert high - low >= ablation.SPAN


def test_figure_draws_no_bar_where_there_is_no_interval(table):
    table[["gain_low", "gain_high"]] = np.nan
    for axes in ablation.draw(table).axes:
        for bars in axes.containers:
            assert not any(map(len, bars.lines[2][0].get_segments()))


def test_values_that_are_all_numbers_are_written_as_they_were_stated(table):
    """pandas reads 1, 4 and 16 of a CSV as floats where other rows have fractions."""
    numbers = table.assign(value=np.arange(len(table)) * 0.5)
    for axes, (_, rows) in zip(
        ablation.draw(numbers).axes, numbers.groupby("factor", sort=False), strict=True
    ):
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert shown == [f"{value:g}" for value in rows["value"].unique()]


def test_figure_joins_numbers_alone(table):
    window, kernel = ablation.draw(table).axes
    assert {bars.lines[0].get_linestyle() for bars in window.containers} == {"-"}
    assert {bars.lines[0].get_linestyle() for bars in kernel.containers} == {"None"}


@pytest.mark.slow
def test_figure_repeats_to_the_byte(table, tmp_path):
    written = []
    for _ in range(2):
        paths = [tmp_path / "a.pdf", tmp_path / "a.png"]
        save(ablation.draw(table), paths)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table[:0], "no rows"),
        (lambda table: table.drop(columns="gain"), "lack columns.*'gain'"),
        (lambda table: table.assign(gain=np.nan), "no gain of"),
    ],
)
def test_figure_refuses_a_faulty_table(table, spoil, message):
    with pytest.raises(ValueError, match=message):
        ablation.draw(spoil(table))


# ---- The figure of calibration runs


def runs_table():
    """Return the rows of an ablation of calibration runs at two budgets."""
    rows = [
        ("calibration runs", str(runs), runs == 8, budget, 40 + runs / 4 - 1 / budget, runs - 8.0)
        for runs in (1, 8, 2)
        for budget in (5, 3)
    ]
    names = ["factor", "value", "base", "full_steps", "psnr", "gain"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(gain_low=table["gain"] - 1, gain_high=table["gain"] + 2)


def test_curve_has_the_tables_means_and_intervals():
    table = runs_table()
    (axes,) = calibration.draw(table, ["calibration runs"]).axes
    assert list(axes.get_xticks()) == [1, 2, 8]
    for bars, budget in zip(axes.containers, (3, 5), strict=True):
        rows = table[table["full_steps"] == budget].assign(value=lambda t: t["value"].astype(int))
        rows = rows.sort_values("value")
        line, _, (segments,) = bars.lines
        np.testing.assert_array_equal(line.get_xdata(orig=False), rows["value"])
        np.testing.assert_allclose(line.get_ydata(orig=False), rows["psnr"])
        ends = np.array(segments.get_segments())[:, :, 1] - rows["psnr"].to_numpy()[:, None]
        np.testing.assert_allclose(ends, [[-1, 2]] * 3)
        assert bars.get_label() == f"{budget} full steps"
    levels = {line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"}
    assert levels == set(table.loc[table["base"], "psnr"])


def test_curve_of_a_real_ablation_is_drawn(table, tmp_path):
    factors = ["window"]
    written = []
    for _ in range(2):
        paths = [tmp_path / "a.pdf", tmp_path / "a.png"]
        save(calibration.draw(table, factors), paths)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("spoil", "factors", "message"),
    [
        (lambda table: table[:0], ["calibration runs"], "no rows"),
        (lambda table: table.drop(columns="gain"), ["calibration runs"], "lack columns.*'gain'"),
        (lambda table: table, ["calibration runs", "window"], r"no factors \['window'\]"),
        (lambda table: table.assign(value="all"), ["calibration runs"], "'all'.*not all numbers"),
    ],
)
def test_curve_refuses_what_it_cannot_draw(spoil, factors, message):
    with pytest.raises(ValueError, match=message):
        calibration.draw(spoil(runs_table()), factors)


FACTORS_OF_RUNS = [
    ("rounds", "figures.calibration.factors: 'rounds' is not one of"),
    ("schedule", "the values of 'schedule' are not all numbers of runs: .'interval'"),
]


@pytest.mark.parametrize(("factor", "message"), FACTORS_OF_RUNS)
def test_curve_is_of_factors_that_there_are(config, factor, message):
    config["figures"]["calibration"]["factors"] = [factor]
    with pytest.raises(ConfigError, match=message):
        Experiment(config)


# ---- The workflow


def dry_run(*arguments: str) -> str:
    return snakemake(ROOT, "-n", "--nolock", *arguments, check=False)


@pytest.mark.slow
def test_dry_run_holds_the_ablations_methods_and_no_others(shipped, tmp_path):
    printed = dry_run("--configfile", FILE, "--forceall")
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE))
    assert int(jobs["sample"]) == len(shipped.groups) * len(shipped.shards)
    assert int(jobs["refine"]) == len(shipped.refined)
    assert jobs["ablation"] == jobs["figure_ablation"] == jobs["figure_calibration"] == "1"
    assert "FORA" not in printed


@pytest.mark.slow
def test_command_of_a_row_is_one_that_snakemake_takes():
    printed = dry_run("results/ablation/scores/cosine.csv", "--configfile", FILE, "--forceall")
    assert re.search(r"^score +1$", printed, re.MULTILINE)


@pytest.mark.slow
def test_a_config_without_ablation_has_no_such_target():
    assert "Missing" in dry_run("results/emoji-flux/ablation.csv")
