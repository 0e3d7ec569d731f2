"""Table: the scores of every image with its record, and one row per run and reference.

The scores are written as `scores.csv` and `scores.parquet`; they hold all that tables and figures
show. The summary's means and medians are over all images of a run, with 95 %
bootstrap intervals over prompts (`eigencache.metrics.statistics`).
"""

import argparse

import pandas as pd

from eigencache._files import replacing
from eigencache.metrics import METRICS
from eigencache.metrics.statistics import Interval, differences, mean_interval, median_interval
from eigencache.plan import FULL
from reproduction.tables.tables import read_table, write_table

BEFORE = ["run", "method", "reference", "num_steps", "full_steps", "prompt_index", "prompt", "seed"]
AFTER = [
    "seconds", "reference_seconds", "speedup", "tflop", "decode_seconds", "peak_memory_mb",
    "device", "threads", "predicted_psnr", "image", "sha256",
]  # fmt: skip
GROUP = ["run", "reference"]


def join(records: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per image and reference: what was recorded and what was scored.

    `speedup` is the ratio of the full run's seconds to the image's own, of the same prompt and
    measured in the same job; nan where no full run was timed.

    Args:
        records: `reproduction.stages.merge`, of all methods.
        scores: `reproduction.stages.score`, of all methods.

    Raises:
        ValueError: an image has no score, or more than one for the same reference.
    """
    key, metrics = ["run", "prompt_index"], [name for name in scores.columns if name in METRICS]
    twice = scores.loc[scores.duplicated([*key, "reference"]), "run"]
    if len(twice):
        raise ValueError(f"images of {sorted(set(twice))} are scored twice: score them again")
    scored = records[key].merge(scores["reference"].drop_duplicates(), how="cross")
    scored = scored.merge(scores, how="left", on=[*key, "reference"])
    gaps = scored[scored[metrics].isna().any(axis=1)]
    if len(gaps):
        raise ValueError(
            f"{len(gaps)} images of {sorted(set(gaps['run']))} have no scores: score them again"
        )
    images = scored.merge(records, on=key, validate="many_to_one")
    images["speedup"] = images["reference_seconds"] / images["seconds"]
    return images[[*BEFORE, *metrics, *AFTER]]


def summarise(
    images: pd.DataFrame, baseline: str | None = None, sets: pd.DataFrame | None = None,
    seed: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per run and reference, in the order in which they first occur.

    Every quality is the mean over images, `psnr`, with its interval, `psnr_low` and `psnr_high`;
    `psnr_gain` is that of the paired difference to the run of the baseline with as many full steps.
    `seconds` and `tflop`, 1e12 operations of the networks, are means; `speedup` is the median of
    paired ratios, with its interval. Ends of intervals are nan where there is none.

    Args:
        images: from `join`.
        baseline: the label of the method to which the others are compared, if any.
        sets: one row per run and reference, one column a metric of a whole set of images.
        seed: of the experiment's noise, to be stated.
    """
    metrics = [name for name in images.columns if name in METRICS]
    steps = images.groupby("run", sort=False)["full_steps"].max()
    others = steps[images.loc[images["method"] == baseline, "run"].unique()]
    bases = {count: name for name, count in others.items()}
    values = {key: rows.set_index("prompt_index") for key, rows in images.groupby(GROUP)}
    rows = []
    for name, reference in images[GROUP].drop_duplicates().itertuples(index=False):
        own, base = values[name, reference], bases.get(steps[name])
        row = {"run": name, "method": own["method"].iloc[0], "reference": reference}
        row |= {"num_steps": own["num_steps"].iloc[0], "full_steps": steps[name]}
        for metric in metrics:
            row |= _named(metric, mean_interval(own[metric]))
        row |= {"predicted_psnr": own["predicted_psnr"].iloc[0], "baseline": base}
        for metric in metrics:
            row |= _named(f"{metric}_gain", _gain(own, values.get((base, reference)), metric))
        rows.append(row | _measured(own) | {"seed": seed, "device": _device(own)})
    table = pd.DataFrame(rows)
    return table if sets is None else _with_sets(table, sets)


def _gain(own: pd.DataFrame, base: pd.DataFrame | None, metric: str) -> Interval:
    """Return the mean over prompts of the difference of a metric to the baseline's run."""
    if base is None:
        return mean_interval([])
    return mean_interval(differences(own[metric], base[metric].loc[own.index]))


def _measured(own: pd.DataFrame) -> dict:
    """Return the time and the memory of one run, and the number of its images."""
    timed = own["speedup"].dropna()
    # The full run is what the others are timed against.
    speedup = Interval(1, 1, 1) if own["run"].iloc[0] == FULL else median_interval(timed)
    return {
        "seconds": own["seconds"].mean(),
        **_named("speedup", speedup),
        "tflop": own["tflop"].mean(),
        "decode_seconds": own["decode_seconds"].mean(),
        "peak_memory_mb": own["peak_memory_mb"].max(),
        "images": len(own),
        "timed_images": len(timed),
    }


def _device(own: pd.DataFrame) -> str:
    return " ".join(sorted(set(own["device"])))


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _with_sets(table: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """Return the summary with the metrics of whole sets before `predicted_psnr`."""
    merged = table.merge(sets, how="left", on=GROUP, validate="one_to_one")
    gaps = merged.loc[merged[list(sets.columns.drop(GROUP))].isna().any(axis=1), "run"]
    if len(gaps):
        raise ValueError(f"the images of {sorted(set(gaps))} have no scores as a set")
    columns = list(table.columns)
    place = columns.index("predicted_psnr")
    return merged[[*columns[:place], *sets.columns.drop(GROUP), *columns[place:]]]


def main(arguments: argparse.Namespace) -> None:
    records = pd.concat(map(read_table, arguments.records), ignore_index=True)
    scores = pd.concat(map(read_table, arguments.scores), ignore_index=True)
    sets = pd.concat(map(read_table, arguments.sets)) if arguments.sets else None
    images = join(records, scores)
    summary = summarise(images, arguments.baseline, sets, arguments.noise_seed)
    write_table(images, arguments.tidy)
    with replacing(arguments.parquet) as part:
        images.to_parquet(part, index=False)
    write_table(summary, arguments.summary)
    metrics = [name for name in summary.columns if name in METRICS]
    shown = summary[summary["reference"] == summary["reference"][0]]
    columns = ["run", "full_steps", *metrics, "seconds", "speedup"]
    print(shown[columns].to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("table", description=__doc__)
    parser.add_argument("--records", nargs="+", required=True, help="one a method, in their order")
    parser.add_argument("--scores", nargs="+", required=True, help="one a method")
    parser.add_argument("--sets", nargs="*", default=[], help="scores of whole sets, one a method")
    parser.add_argument("--baseline", nargs="?", help="label of the method to compare with")
    parser.add_argument("--noise-seed", type=int, help="of the experiment, to be stated")
    parser.add_argument("--tidy", required=True, help="CSV to write, a row an image")
    parser.add_argument("--parquet", required=True, help="Parquet file to write, the same")
    parser.add_argument("--summary", required=True, help="CSV to write, a row a run")
    run(main, parser, outputs=["tidy", "parquet", "summary"],
        inputs=["records", "scores", "sets"])  # fmt: skip
