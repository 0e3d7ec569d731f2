"""Score: measure every image of one method against the full run and against its prompt."""

import argparse

import pandas as pd
import torch
from tqdm import tqdm

from eigencache.images import load_image
from eigencache.metrics._clip_score import ClipScore
from eigencache.metrics._psnr import psnr
from eigencache.metrics._ssim import ssim
from eigencache.stages import run
from eigencache.stages.fetch import verified
from eigencache.tables import read_table, refuse_altered, write_table


def score_records(records: pd.DataFrame, reference: pd.DataFrame, clip_score: ClipScore):
    """Return a table of `run, prompt_index` and one column a metric, in the order of `records`.

    Raises:
        ValueError: a prompt of `records` has no image in `reference`, or another prompt's.
    """
    known = reference.set_index("prompt_index")
    strangers = records[~records["prompt_index"].isin(known.index)]
    if len(strangers):
        raise ValueError(f"no reference image of prompts {sorted(set(strangers['prompt_index']))}")
    rows = []
    for row in tqdm(records.to_dict("records"), desc="score", unit="image"):
        other = known.loc[row["prompt_index"]]
        if other["prompt"] != row["prompt"] or other["seed"] != row["seed"]:
            raise ValueError(f"{row['image']} and {other['image']}: prompt or noise differ")
        image, full = load_image(row["image"]), load_image(other["image"])
        rows.append(
            {
                "run": row["run"],
                "prompt_index": row["prompt_index"],
                "psnr": psnr(image, full),
                "ssim": ssim(image, full),
                "clip_score": clip_score(row["image"], row["prompt"]),
            }
        )
    return pd.DataFrame(rows)


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    records, reference = read_table(arguments.records), read_table(arguments.reference)
    refuse_altered(pd.concat([records, reference]))
    scores = score_records(records, reference, ClipScore(verified(arguments.clip)))
    write_table(scores, arguments.scores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("score", description=__doc__)
    parser.add_argument("--records", required=True)
    parser.add_argument("--reference", required=True, help="the records of the full run")
    parser.add_argument("--clip", required=True, help="the manifest of a fetched open_clip model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scores", required=True, help="CSV to write")
    run(main, parser, outputs=["scores"], inputs=["records", "reference"], models=["clip"])
