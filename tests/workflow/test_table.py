"""The tables: every image's scores, one row a run, and the methods by budget."""

import argparse
import re

import numpy as np
import pandas as pd
import pytest
from helpers import compiled, needs_latex

from eigencache.metrics import METRICS, statistics
from eigencache.metrics.statistics import mean_interval, median_interval
from reproduction.stages import compare as compare_stage
from reproduction.stages import table as table_stage
from reproduction.stages.compare import compare, places, sheet
from reproduction.stages.table import AFTER, BEFORE, join, summarise
from reproduction.tables.tables import read_table, write_table
from reproduction.tables.typeset import Cell, latex, markdown

PROMPTS = 8


@pytest.mark.parametrize("texts", [["1", "2", "3"], ["007", "1e3", "08"], ["True", "NA", "None"]])
@pytest.mark.parametrize("column", ["method", "run", "reference", "prompt"])
def test_texts_that_look_like_numbers_stay_texts(tmp_path, column, texts):
    path = tmp_path / "table.csv"
    write_table(pd.DataFrame({column: texts, "psnr": [1.5, None, 3]}), path)
    table = read_table(path)
    assert table[column].tolist() == texts
    assert table["psnr"].tolist()[::2] == [1.5, 3]


# Label to full steps to the mean PSNR and the mean ST-LPIPS, of which less is better.
QUALITY = {
    "plain": {5: (30, 0.30), 9: (40, 0.20)},
    "ours": {5: (50, 0.10), 9: (60, 0.05)},
    "other_1": {5: (40, 0.20), 9: (40, 0.20)},
    "asked": {7: (45, 0.15)},
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)


@pytest.fixture
def records():
    """The records of a full run and of all runs of `QUALITY`; half of the images are timed."""
    rows = [("full", "full", 50, i) for i in range(PROMPTS)] + [
        (f"{label}-{steps:02d}", label, steps, i)
        for label, runs in QUALITY.items() for steps in runs for i in range(PROMPTS)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["run", "method", "full_steps", "prompt_index"])
    draw = np.random.default_rng(0)
    table["seconds"] = table["full_steps"] / 10 + draw.uniform(0, 0.1, len(table))
    timed = (table["run"] != "full") & (table["prompt_index"] % 2 == 0)
    table["reference_seconds"] = np.where(timed, 5 + draw.uniform(0, 0.5, len(table)), np.nan)
    return table.assign(
        prompt=[f"prompt {i}" for i in table["prompt_index"]], seed=table["prompt_index"] + 2**62,
        num_steps=50, decode_seconds=0.5, predicted_psnr=np.nan, device="cpu", threads=1,
        tflop=table["full_steps"] / 8, peak_memory_mb=100.0 + table["prompt_index"], image="x.png",
        sha256="ab" * 32,
    )  # fmt: skip


@pytest.fixture
def scores(records):
    """What `stages.score` writes: against the full run, and against `plain-05`, all the same."""
    draw = np.random.default_rng(1)
    rows = []
    for row in records.itertuples():
        psnr, lpips = QUALITY.get(row.method, {}).get(row.full_steps, (np.inf, 0.0))
        noise = draw.normal() + 3 * (row.prompt_index % 2)
        rows.append((row.run, row.prompt_index, "full", psnr + noise, lpips + noise / 1000))
    table = pd.DataFrame(
        rows, columns=["run", "prompt_index", "reference", "psnr", "st_lpips_alex"]
    )
    return pd.concat([table, table.assign(reference="plain-05", psnr=20.0)], ignore_index=True)


@pytest.fixture
def images(records, scores):
    return join(records, scores)


@pytest.fixture
def summary(images):
    return summarise(images, "plain", seed=2026)


def of(summary, run, reference="full"):
    return summary.set_index(["run", "reference"]).loc[(run, reference)]


# ---- Every image


def test_there_is_a_row_for_each_image_and_reference(images, records):
    assert list(images.columns) == [*BEFORE, "psnr", "st_lpips_alex", *AFTER]
    assert len(images) == 2 * len(records)
    assert not images.duplicated(["run", "prompt_index", "reference"]).any()
    assert images[["run", "prompt_index"]].drop_duplicates().to_numpy().tolist() == (
        records[["run", "prompt_index"]].to_numpy().tolist()
    )


def test_scores_are_matched_by_run_prompt_and_reference_not_by_place(records, scores, images):
    shuffled = scores.sample(frac=1, random_state=0)
    key = ["run", "prompt_index", "reference"]
    pd.testing.assert_frame_equal(
        join(records, shuffled).sort_values(key).reset_index(drop=True),
        images.sort_values(key).reset_index(drop=True),
    )
    row = images.set_index(key).loc[("ours-09", 3, "full")]
    assert row["psnr"] == scores.set_index(key).loc[("ours-09", 3, "full"), "psnr"]


def test_speed_up_of_an_image_is_the_ratio_of_its_pair(images):
    timed = images[images["reference_seconds"].notna()]
    np.testing.assert_array_equal(timed["speedup"], timed["reference_seconds"] / timed["seconds"])
    assert images["speedup"].count() == len(timed) > 0


def test_an_image_scored_twice_is_refused(records, scores):
    with pytest.raises(ValueError, match=r"images of \['full'\] are scored twice"):
        join(records, pd.concat([scores, scores[:1]]))


@pytest.mark.parametrize("gap", ["row", "value"])
def test_an_image_without_scores_is_refused(records, scores, gap):
    if gap == "row":
        scores = scores.drop(index=scores.index[scores["run"] == "ours-05"][2])
    else:
        scores.loc[scores.index[scores["run"] == "ours-05"][2], "st_lpips_alex"] = np.nan
    with pytest.raises(ValueError, match=r"1 images of \['ours-05'\] have no scores"):
        join(records, scores)


# ---- A row a run


def test_summary_has_a_row_for_each_run_and_reference_in_their_order(summary, records):
    runs = list(dict.fromkeys(records["run"]))
    assert list(summary.loc[summary["reference"] == "full", "run"]) == runs
    assert len(summary) == 2 * len(runs)


def test_quality_and_seconds_are_means_and_memory_is_the_largest(summary, images):
    rows = images[(images["run"] == "ours-09") & (images["reference"] == "full")]
    found = of(summary, "ours-09")
    for name in ("psnr", "st_lpips_alex"):
        assert tuple(found[[name, f"{name}_low", f"{name}_high"]]) == mean_interval(rows[name])
    assert found["seconds"] == pytest.approx(rows["seconds"].mean())
    assert (found["peak_memory_mb"], found["images"], found["timed_images"]) == (107, 8, 4)
    assert (found["full_steps"], found["num_steps"], found["seed"]) == (9, 50, 2026)
    assert found["device"] == "cpu"
    assert of(summary, "ours-09", "plain-05")["psnr"] == 20


def test_speed_up_is_the_median_of_paired_ratios(records, scores):
    ratios = [4, 10, 2, 5, 6, 7, 3, 8]  # their median is 5.5; the ratio of means is another
    records.loc[records["run"] == "ours-09", "seconds"] = 1 / np.array(ratios)
    records.loc[records["run"] == "ours-09", "reference_seconds"] = 1.0
    found = of(summarise(join(records, scores)), "ours-09")
    ends = tuple(found[["speedup", "speedup_low", "speedup_high"]])
    assert ends == pytest.approx(median_interval(ratios)) and ends[0] == 5.5
    assert found["timed_images"] == 8


def test_images_without_a_timed_pair_do_not_count_for_speed_up(summary, images):
    rows = images[(images["run"] == "ours-05") & (images["reference"] == "full")]
    found = of(summary, "ours-05")
    assert found["speedup"] == rows["speedup"].dropna().median()
    assert np.isnan(found["speedup_low"])  # of four pairs there is no interval


def test_the_full_run_is_as_fast_as_itself_and_infinitely_like_itself(summary):
    row = of(summary, "full")
    assert list(row[["speedup", "speedup_low", "speedup_high"]]) == [1, 1, 1]
    assert list(row[["psnr", "psnr_low", "psnr_high"]]) == [np.inf] * 3


def test_gain_is_paired_with_the_baseline_of_the_same_budget(summary, images):
    psnr = images[images["reference"] == "full"].pivot(
        index="prompt_index", columns="run", values="psnr"
    )
    found = of(summary, "ours-09")
    assert found["baseline"] == "plain-09"
    gain = mean_interval(psnr["ours-09"] - psnr["plain-09"])
    assert tuple(found[["psnr_gain", "psnr_gain_low", "psnr_gain_high"]]) == pytest.approx(gain)
    assert found["psnr_gain"] == pytest.approx(found["psnr"] - of(summary, "plain-09")["psnr"])
    assert (
        list(of(summary, "plain-05")[["psnr_gain", "psnr_gain_low", "psnr_gain_high"]]) == [0] * 3
    )


@pytest.mark.parametrize("run", ["asked-07", "full"])
def test_a_budget_without_the_baseline_has_no_gain(summary, run):
    row = of(summary, run)
    assert pd.isna(row["baseline"])
    assert row[["psnr_gain", "psnr_gain_low", "psnr_gain_high"]].isna().all()


def test_without_a_baseline_nothing_has_a_gain(images):
    summary = summarise(images)
    assert summary["baseline"].isna().all() and summary["psnr_gain"].isna().all()


def test_pairs_are_of_the_same_prompt_whatever_the_order(records, scores, summary):
    key = ["run", "reference"]
    other = summarise(join(records.sample(frac=1, random_state=3), scores), "plain", seed=2026)
    pd.testing.assert_series_equal(
        other.set_index(key)["psnr_gain"].sort_index(),
        summary.set_index(key)["psnr_gain"].sort_index(),
    )


def test_a_few_images_like_the_reference_leave_no_interval(records, scores):
    scores.loc[scores.index[scores["run"] == "ours-09"][:2], "psnr"] = np.inf
    row = of(summarise(join(records, scores), "plain"), "ours-09")
    assert row["psnr"] == row["psnr_gain"] == np.inf
    assert row[["psnr_low", "psnr_high", "psnr_gain_low", "psnr_gain_high"]].isna().all()


def test_metrics_of_whole_sets_stand_beside_the_others(images, summary):
    sets = summary[["run", "reference"]].assign(frechet_lite0=np.arange(len(summary)) / 2)
    found = summarise(images, "plain", sets[::-1], 2026)
    place = found.columns.get_loc("frechet_lite0")
    assert found.columns[place + 1] == "predicted_psnr"
    assert list(found["frechet_lite0"]) == list(sets["frechet_lite0"])
    pd.testing.assert_frame_equal(found.drop(columns="frechet_lite0"), summary)
    with pytest.raises(ValueError, match=r"the images of \['full'\] have no scores as a set"):
        summarise(images, "plain", sets[1:], 2026)


# ---- Which run is best


def values(**means):
    """Return values of eight prompts around each mean: all runs alike from prompt to prompt."""
    wiggle = np.array([3, -2, 0.5, 1, -1, -3, 2, -0.5])
    return pd.DataFrame({name: mean + wiggle for name, mean in means.items()})


def test_best_and_second_are_told_by_pairs_however_much_prompts_differ():
    table = values(a=40, b=40.3, c=40.1)
    table.loc[0] += 100
    assert places(table, higher=True) == {"b": 1, "c": 2}
    assert places(table, higher=False) == {"a": 1, "c": 2}


def test_what_the_intervals_do_not_tell_apart_is_not_marked():
    table = values(a=40, b=50, c=30)
    table["d"] = table["b"].to_numpy()[::-1] + 0.01  # as good as b, but not on every prompt
    assert places(table, higher=True) == {}
    assert places(table.drop(columns="d"), higher=True) == {"b": 1, "a": 2}


def test_second_best_is_not_marked_where_it_is_a_tie():
    table = values(a=40, b=50)
    table["c"] = table["a"].to_numpy()[::-1]
    assert places(table, higher=True) == {"b": 1}


def test_equal_runs_and_lone_runs_are_not_marked():
    assert places(values(a=40, b=40), higher=True) == {}
    assert places(values(a=40), higher=True) == {}
    assert places(values(a=40, b=50), higher=True) == {"b": 1}


def test_one_lucky_image_makes_no_best():
    table = values(a=40, b=40)
    table.loc[3, "b"] = np.inf
    assert places(table, higher=True) == {}
    table["b"] = np.inf
    assert places(table, higher=True) == {"b": 1}


def test_too_few_prompts_make_no_best():
    assert places(values(a=40, b=50)[:5], higher=True) == {}


# ---- By budget


@pytest.fixture
def table(summary, images):
    return compare(summary, images, "full")


def test_runs_stand_by_budget_and_the_baseline_first(table):
    assert list(zip(table["full_steps"], table["run"], strict=True)) == [
        (50, "full"), (5, "plain-05"), (5, "ours-05"), (5, "other_1-05"), (7, "asked-07"),
        (9, "plain-09"), (9, "ours-09"), (9, "other_1-09"),
    ]  # fmt: skip


def test_the_baseline_is_first_wherever_the_configuration_has_it(images):
    table = compare(summarise(images, "other_1"), images, "full")
    assert list(table.loc[table["full_steps"] == 9, "method"]) == ["other_1", "plain", "ours"]


def test_places_are_within_a_budget_and_in_the_metrics_direction(table):
    psnr, lpips = (
        table.set_index("run")[f"{name}_place"].dropna().to_dict()
        for name in ("psnr", "st_lpips_alex")
    )
    assert METRICS["psnr"].higher and not METRICS["st_lpips_alex"].higher
    assert psnr == lpips == {"ours-05": 1, "other_1-05": 2, "ours-09": 1}


def test_table_has_what_the_summary_says(table, summary):
    for row in table.to_dict("records"):
        known = of(summary, row["run"])
        for name in ("psnr", "psnr_low", "psnr_gain_high", "speedup", "images", "seed", "device"):
            assert row[name] == known[name] or (pd.isna(row[name]) and pd.isna(known[name]))


def test_another_reference_has_a_table_of_its_own(summary, images):
    table = compare(summary, images, "plain-05")
    assert (table["psnr"] == 20).all() and table["psnr_place"].isna().all()
    assert "against plain-05" in markdown(sheet(table, "plain-05"))
    with pytest.raises(ValueError, match=r"against 'x'; the references are \['full', 'plain-05'\]"):
        compare(summary, images, "x")


def test_the_reference_is_not_the_best_for_being_like_itself(records, scores):
    own = (scores["run"] == "plain-05") & (scores["reference"] == "plain-05")
    scores.loc[own, "psnr"] = np.inf
    images = join(records, scores)
    table = compare(summarise(images, "plain"), images, "plain-05").set_index("run")
    assert table.loc["plain-05", "psnr"] == np.inf and pd.isna(table.loc["plain-05", "psnr_place"])


def test_sheet_shows_means_intervals_and_marks(table):
    found = sheet(table, "full")
    assert found.heads == ["method", "PSNR (dB) ↑", "PSNR over plain (dB) ↑", "ST-LPIPS (alex) ↓",
                           "speed-up ↑", "TFLOP ↓"]  # fmt: skip
    assert list(found.groups) == ["50 full steps (full run)", "5 full steps", "7 full steps",
                                  "9 full steps"]  # fmt: skip
    plain, ours, other = found.groups["5 full steps"]
    row = table.set_index("run").loc["ours-05"]
    assert plain[0] == Cell("plain (baseline)") and plain[2] == Cell("–")  # noqa: RUF001
    detail = f"[{row['psnr_low']:.2f}, {row['psnr_high']:.2f}]"
    assert ours[1] == Cell(f"{row['psnr']:.2f}", detail, "bold")
    detail = f"[{row['psnr_gain_low']:+.2f}, {row['psnr_gain_high']:+.2f}]"
    assert ours[2] == Cell(f"{row['psnr_gain']:+.2f}", detail)
    assert ours[4:] == [Cell(f"{row['speedup']:.2f}"), Cell("0.625")]
    assert found.groups["50 full steps (full run)"][0][5] == Cell("6.25")
    assert other[1].mark == other[3].mark == "underlined" and ours[3].mark == "bold"
    assert found.groups["50 full steps (full run)"][0][1] == Cell("∞")
    notes = " ".join(found.notes)
    for fact in (f"same {PROMPTS} prompts", "seed 2026", "on cpu", "of 4 prompts", "none left out"):
        assert fact in notes


def test_sheet_says_what_has_no_baseline_and_how_to_get_one(table, images):
    told = "plain has no run to compare asked (7 full steps) with: to make one, add 7 to budgets"
    assert any(note.startswith(told) for note in sheet(table, "full").notes)
    others = images[images["method"] != "asked"]
    found = sheet(compare(summarise(others, "plain"), others, "full"), "full")
    assert "no run to compare" not in " ".join(found.notes)


def test_sheet_counts_one_timed_prompt_as_one(table):
    notes = " ".join(sheet(table.assign(timed_images=1), "full").notes)
    assert "of 1 prompt or more" in notes


def test_without_a_baseline_no_column_compares_with_it(images):
    found = sheet(compare(summarise(images), images, "full"), "full")
    assert found.heads == ["method", "PSNR (dB) ↑", "ST-LPIPS (alex) ↓", "speed-up ↑", "TFLOP ↓"]
    assert {len(row) for rows in found.groups.values() for row in rows} == {5}
    notes = " ".join(found.notes)
    assert "seed" not in notes and "no run to compare" not in notes


def test_a_metric_of_whole_sets_has_neither_interval_nor_mark(images, summary):
    sets = summary[["run", "reference"]].assign(frechet_lite0=1.23456)
    found = sheet(compare(summarise(images, "plain", sets), images, "full"), "full")
    column = found.heads.index("Fréchet distance (EfficientNet-lite0) ↓")
    cells = {row[column] for rows in found.groups.values() for row in rows}
    assert cells == {Cell("1.235")}


# ---- The files


@pytest.fixture
def written(tmp_path, records, scores, capsys):
    """The folder into which both stages have written, from files of one method each."""
    for label, rows in records.groupby("method", sort=False):
        write_table(rows, tmp_path / "records" / f"{label}.csv")
        write_table(scores[scores["run"].isin(rows["run"])], tmp_path / "scores" / f"{label}.csv")
    labels = ["full", *QUALITY]
    table_stage.main(
        argparse.Namespace(
            records=[tmp_path / f"records/{label}.csv" for label in labels],
            scores=[tmp_path / f"scores/{label}.csv" for label in labels],
            sets=[], baseline="plain", noise_seed=7, tidy=tmp_path / "scores.csv",
            parquet=tmp_path / "scores.parquet", summary=tmp_path / "summary.csv",
        )
    )  # fmt: skip
    (tmp_path / "printed.txt").write_text(capsys.readouterr().out)
    compare_stage.main(
        argparse.Namespace(
            summary=tmp_path / "summary.csv", tidy=tmp_path / "scores.csv", reference="full",
            **{k: tmp_path / f"table.{s}"
               for k, s in (("table", "csv"), ("markdown", "md"), ("latex", "tex"))},
        )
    )  # fmt: skip
    return tmp_path


def test_csv_and_parquet_hold_the_same(written, images):
    for table in (read_table(written / "scores.csv"), pd.read_parquet(written / "scores.parquet")):
        key = ["run", "reference", "prompt_index"]
        pd.testing.assert_frame_equal(
            table.sort_values(key).reset_index(drop=True),
            images.sort_values(key).reset_index(drop=True),
            check_dtype=False,
        )


def test_the_end_of_a_run_prints_a_row_a_run(written, summary):
    lines = (written / "printed.txt").read_text().splitlines()
    assert lines[0].split() == ["run", "full_steps", "psnr", "st_lpips_alex", "seconds", "speedup"]
    assert {line.split()[0] for line in lines[1:]} == set(summary["run"])
    assert all(len(line) < 100 for line in lines)


def test_all_three_files_say_the_same(written, table):
    csv = read_table(written / "table.csv")
    assert list(csv["run"]) == list(table["run"])
    text, tex = (written / "table.md").read_text(), (written / "table.tex").read_text()
    for row in csv[csv["run"] != "full"].itertuples():
        detail = f"[{row.psnr_low:.2f}, {row.psnr_high:.2f}]"
        mark = {1.0: "**", 2.0: "<ins>"}.get(row.psnr_place, "")
        assert f" {mark}{row.psnr:.2f}{mark.replace('<', '</')} {detail} |" in text
        command = {1.0: r"\textbf{", 2.0: r"\underline{"}.get(row.psnr_place, "")
        shown = f"{command}{row.psnr:.2f}{'}' if command else ''}"
        assert rf"& {shown} & {{\scriptsize {detail}}} &" in tex


@needs_latex
def test_latex_of_the_table_compiles_as_it_is(written, table, tmp_path_factory):
    words = compiled((written / "table.tex").read_text(), tmp_path_factory.mktemp("tex"))
    lines = [line for line in words.splitlines() if re.search(r"\d\.\d{4}", line)]
    assert len(lines) == len(table)
    assert "plain (baseline)" in words and "other 1" in words


def test_latex_repeats_to_the_byte(written, summary, images):
    again = latex(sheet(compare(summary.assign(seed=7), images, "full"), "full"))
    assert again == (written / "table.tex").read_text()
