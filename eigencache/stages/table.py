"""Table: one row per run, from the records and scores of every method."""

import argparse

import pandas as pd

from eigencache.metrics import METRICS
from eigencache.plan import FULL
from eigencache.stages import run
from eigencache.tables import of_first_reference, read_table, write_table


def summarise(records: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, in the order in which runs first occur.

    Quality and `seconds` are means over images. `speedup` is the median of paired ratios: of the
    full run's seconds to this run's, both of the same image and measured in the same job.

    Raises:
        ValueError: an image has no scores.
    """
    images = records.merge(scores, on=["run", "prompt_index"], validate="one_to_one")
    if len(images) != len(records):
        raise ValueError(f"{len(records) - len(images)} images have no scores: score them again")
    images["ratio"] = images["reference_seconds"] / images["seconds"]
    table = images.groupby("run", sort=False).agg(
        method=("method", "first"),
        num_steps=("num_steps", "first"),
        full_steps=("full_steps", "max"),
        psnr=("psnr", "mean"),
        predicted_psnr=("predicted_psnr", "first"),
        **{m: (m, "mean") for m in METRICS if m in images and m != "psnr"},
        seconds=("seconds", "mean"),
        speedup=("ratio", "median"),
        decode_seconds=("decode_seconds", "mean"),
        peak_memory_mb=("peak_memory_mb", "max"),
        images=("prompt_index", "size"),
        timed_images=("ratio", "count"),
    )
    table.loc[table.index == FULL, "speedup"] = 1.0  # it is what the others are timed against
    return table.reset_index()


def main(arguments: argparse.Namespace) -> None:
    records = pd.concat(map(read_table, arguments.records), ignore_index=True)
    scores = pd.concat(map(read_table, arguments.scores), ignore_index=True)
    summary = summarise(records, of_first_reference(scores))
    write_table(summary, arguments.summary)
    metrics = [name for name in METRICS if name in summary]
    columns = ["run", "full_steps", *metrics, "seconds", "speedup"]
    print(summary[columns].to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("table", description=__doc__)
    parser.add_argument("--records", nargs="+", required=True, help="one a method, in their order")
    parser.add_argument("--scores", nargs="+", required=True, help="one a method")
    parser.add_argument("--summary", required=True, help="CSV to write")
    run(main, parser, outputs=["summary"], inputs=["records", "scores"])
