"""Gallery: one self-contained HTML page that compares any two runs on any prompt.

It opens on EigenCache beside the full run, on the prompt of the median PSNR; a row above shows all
methods at about that budget.

Numbers are those of the tables, to the last digit; the images are copies made for looking at, and
the page says where they are smaller than the images themselves or lossy. It asks nothing of any
network, and its content security policy forbids it to.
"""

import argparse
import base64
import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from tqdm import tqdm

from eigencache._files import replacing
from eigencache.metrics import METRICS
from eigencache.plan import FULL
from reproduction.tables.tables import read_table, refuse_altered, still_of

OURS = "EigenCache"
LIMIT = 100_000_000  # bytes; browsers still open such a page within seconds
LOSSLESS_SIDE = 128  # pixels of the longer side up to which copies are lossless
QUALITY = 85  # of lossy WebP, where 100 is best
PROBES = 24  # images that are encoded to tell the page's size before all of them are

_HERE = Path(__file__).parent
_KEYS = ["run", "prompt_index"]


def attach(scores: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Return the scores with `shard`, the file that an image's record came from.

    Raises:
        ValueError: scores are of other images than the records.
    """
    keys = [*_KEYS, "image", "sha256"]
    known = records[[*keys, "shard"]]
    merged = scores.merge(known, "left", on=keys, validate="many_to_one")
    strangers = merged.loc[merged["shard"].isna(), "image"]
    if len(strangers):
        raise ValueError(
            f"{strangers.iloc[0]}: scored, but the records have no such image; delete the scores "
            "and run again"
        )
    return merged


def select(
    scores: pd.DataFrame, budgets: Sequence[int] = (), prompts: Sequence[int] = ()
) -> pd.DataFrame:
    """Return the scores of what the page shows, by prompt and then by run, the full run first.

    Args:
        scores: one row an image and reference, as in `scores.csv`.
        budgets: numbers of full steps to show; none: all. Methods that have a single run, such as
            the full run and plans for a stated quality, are always shown.
        prompts: the indices of prompts to show, in their order; none: all.

    Raises:
        ValueError: a prompt has no images, or an image is not scored against each reference.
    """
    runs = scores.drop_duplicates("run").sort_values(
        "method", key=lambda method: method != FULL, kind="stable"
    )
    if budgets:
        single = ~runs["method"].duplicated(keep=False)
        runs = runs[runs["full_steps"].isin(budgets) | single]
    prompts = prompts or sorted(set(scores["prompt_index"]))
    wanted = pd.MultiIndex.from_product([scores["reference"].unique(), prompts, runs["run"]])
    found = scores.set_index(["reference", "prompt_index", "run"], drop=False)
    missing = wanted.difference(found.index, sort=False)
    if len(missing):
        reference, prompt, name = missing[0]
        raise ValueError(f"no score of {name} on prompt {prompt} against {reference}")
    return found.loc[wanted].reset_index(drop=True)


def contents(shown: pd.DataFrame, summary: pd.DataFrame) -> dict:
    """Return what the page knows, all but the images, as `page.js` reads it.

    Args:
        shown: from `select`.
        summary: one row a run and reference, as in `summary.csv`.

    Returns:
        `references`, `metrics`, `runs` and `prompts`; `start`, the place of the run that the page
        opens on; and, of references, metrics, runs and prompts in these orders,
        `scores[reference][metric][run][prompt]` and `images[run][prompt]`, the place of an image
        among `unique_images`.

    Raises:
        ValueError: the summary lacks a run.
    """
    references, names = list(shown["reference"].unique()), list(shown["run"].unique())
    metrics = [m for m in shown.columns if m in METRICS and not METRICS[m].whole]
    wholes = [m for m in summary.columns if m in METRICS and METRICS[m].whole]
    first = shown[shown["reference"] == references[0]]
    place = {digest: i for i, digest in enumerate(unique_images(shown)["sha256"])}
    grids = {
        reference: [_grid(rows, metric, names) for metric in metrics]
        for reference, rows in shown.groupby("reference", sort=False)
    }
    runs = [_run(name, summary, references, metrics, wholes) for name in names]
    return {
        "references": references,
        "metrics": [_about(metric) for metric in metrics],
        "wholes": [_about(metric) for metric in wholes],
        "runs": runs,
        "start": start(runs),
        "prompts": [
            {"index": int(row.prompt_index), "text": str(row.prompt), "seed": str(row.seed)}
            for row in first.drop_duplicates("prompt_index").itertuples()
        ],
        "scores": [grids[reference] for reference in references],
        "seconds": _grid(first, "seconds", names),
        "images": _grid(first.assign(place=first["sha256"].map(place)), "place", names),
    }


def start(runs: Sequence[dict]) -> int:
    """Return the place of the run that the page opens on, beside the full run, which leads.

    It is EigenCache's with the fewest full steps, or where there is no method of that label, the
    closest to the full run of those with the fewest full steps.
    """

    def order(place: int) -> tuple:
        mean = (runs[place]["means"][0] or [[None]])[0][0]
        closeness = -math.inf if mean is None else float(mean)
        return runs[place]["method"] != OURS, runs[place]["full_steps"], -closeness

    return min(range(1, len(runs)), key=order, default=0)


def unique_images(shown: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each image of different bytes: equal ones are embedded once."""
    return shown.drop_duplicates("sha256")


def copies(paths: Iterable[str], size: int | None = None) -> Iterator[bytes]:
    """Yield each image as WebP, at most `size` pixels on its longer side, lossless if small."""
    for path in paths:
        with Image.open(still_of(path)) as image:
            copy = image.convert("RGB")
        if size:
            copy.thumbnail((size, size), Image.Resampling.LANCZOS)
        lossless = max(copy.size) <= LOSSLESS_SIDE
        buffer = io.BytesIO()
        copy.save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else QUALITY, method=4)
        yield buffer.getvalue()


def embedded(paths: Sequence[str], size: int | None = None) -> list[str]:
    """Return images as base64 of WebP; `copies` says how.

    Raises:
        ValueError: the page would exceed `LIMIT`; a few images tell before all are encoded.
    """
    probes = paths[:: max(1, len(paths) // PROBES)]
    probed = sum(map(_base64_bytes, copies(probes, size)))
    refuse_large(probed * len(paths) // len(probes), len(paths))
    found = [
        base64.b64encode(copy).decode()
        for copy in tqdm(copies(paths, size), desc="gallery", unit="image", total=len(paths))
    ]
    refuse_large(sum(map(len, found)), len(paths))
    return found


def refuse_large(size: int, images: int) -> None:
    """Raise a ValueError if a page with these many bytes of images is too large to open."""
    if size > LIMIT:
        raise ValueError(
            f"the page would have about {size / 1e6:.0f} MB with {images} different images, more "
            f"than {LIMIT / 1e6:.0f} MB; show fewer prompts, budgets or pixels: set "
            "figures.gallery.prompts, figures.gallery.budgets or figures.gallery.size"
        )


def render(title: str, about: dict, notes: Sequence[str], images: Sequence[str]) -> str:
    """Return the page.

    Args:
        title: of the page, the name of the experiment.
        about: from `contents`, with `size`, width and height of the embedded images in pixels, and
            `exact`, whether they are the images' very pixels.
        notes: sentences below the title.
        images: from `embedded`.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, script = (_HERE.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        title=title, about=about, notes=notes, images=images,
        style=style, style_hash=_policy(style), script=script, script_hash=_policy(script),
    )  # fmt: skip


def describe(
    shown: pd.DataFrame, scores: pd.DataFrame, full: tuple[int, int], embedded: tuple[int, int]
) -> list[str]:
    """Return what the page says of itself: how much it shows, and how faithfully.

    Args:
        shown: from `select`.
        scores: of everything.
        full: width and height of the images, in pixels.
        embedded: and of their copies in the page.
    """
    runs, prompts = shown["run"].nunique(), shown["prompt_index"].nunique()
    all_runs, all_prompts = scores["run"].nunique(), scores["prompt_index"].nunique()
    notes = [
        f"{_of(runs, all_runs)} runs on {_of(prompts, all_prompts)} prompts, from equal noise."
    ]
    changes = []
    if full != embedded:
        sizes = ["\u00d7".join(map(str, size)) for size in (full, embedded)]
        changes.append(f"scaled from {sizes[0]} to {sizes[1]} pixels")
    if max(embedded) > LOSSLESS_SIDE:
        changes.append("compressed with some loss")
    if changes:
        notes.append(
            f"The images on this page are copies {' and '.join(changes)}; "
            "all numbers are of the images themselves."
        )
    return notes


def _grid(rows: pd.DataFrame, column: str, runs: list[str]) -> list[list]:
    """Return a column as `[run][prompt]`, both in the order of `rows`."""
    prompts = list(rows["prompt_index"].unique())
    table = rows.pivot(index="run", columns="prompt_index", values=column)
    return [[_number(value) for value in row] for row in table.loc[runs, prompts].to_numpy()]


def _run(name: str, summary: pd.DataFrame, references, metrics, wholes) -> dict:
    rows = summary[summary["run"] == name].set_index("reference")
    missing = [reference for reference in references if reference not in rows.index]
    if missing:
        raise ValueError(f"the summary has no row of run {name} against {missing[0]}; make it anew")
    first = rows.loc[references[0]]

    def interval(row, column):
        return [_number(row.get(column + end)) for end in ("", "_low", "_high")]

    return {
        "name": name,
        "method": str(first["method"]),
        "full_steps": int(first["full_steps"]),
        "num_steps": int(first["num_steps"]),
        "speedup": interval(first, "speedup"),
        "predicted_psnr": _number(first.get("predicted_psnr")),
        "images": int(first["images"]),
        "means": [[interval(rows.loc[r], metric) for metric in metrics] for r in references],
        "wholes": [[_number(rows.loc[r].get(metric)) for metric in wholes] for r in references],
    }


def _about(metric: str) -> dict:
    known = METRICS[metric]
    return {
        "name": metric, "label": known.label, "higher": known.higher, "paired": known.paired,
        "digits": known.digits,
    }  # fmt: skip


def _number(value) -> float | int | str | None:
    """Return a number as JSON has it: nan becomes null, infinity a text that JavaScript reads."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if float(value).is_integer() else float(value)


def _policy(text: str) -> str:
    """Return the hash by which a content security policy allows this one script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _of(shown: int, all_of_them: int) -> str:
    return str(shown) if shown == all_of_them else f"{shown} of {all_of_them}"


def _base64_bytes(copy: bytes) -> int:
    return 4 * math.ceil(len(copy) / 3)


def _dimensions(path: str | os.PathLike) -> tuple[int, int]:
    """Return width and height in pixels."""
    with Image.open(still_of(path)) as image:
        return image.size


def main(arguments: argparse.Namespace) -> None:
    records = pd.concat(map(read_table, arguments.records), ignore_index=True)
    scores = attach(read_table(arguments.scores), records)
    shown = select(scores, arguments.budgets, arguments.prompts)
    images = unique_images(shown)
    refuse_altered(images)
    paths = list(images["image"])
    about = contents(shown, read_table(arguments.summary))
    copied = embedded(paths, arguments.size)
    full = _dimensions(paths[0])
    with Image.open(io.BytesIO(base64.b64decode(copied[0]))) as first:
        about["size"] = list(first.size)
    about["exact"] = first.size == full and max(full) <= LOSSLESS_SIDE
    notes = describe(shown, scores, full, tuple(about["size"]))
    page = render(arguments.title, about, notes, copied)
    with replacing(arguments.page) as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    print(f"{len(page.encode()) / 1e6:.1f} MB with {len(copied)} different images. {notes[0]}")


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("gallery", description=__doc__)
    parser.add_argument("--title", required=True, help="the experiment's name")
    parser.add_argument("--records", nargs="+", required=True, help="one a method, in their order")
    parser.add_argument("--scores", required=True, help="of every image")
    parser.add_argument("--summary", required=True, help="one row a run and reference")
    parser.add_argument("--budgets", nargs="*", type=int, help="full steps to show; default: all")
    parser.add_argument("--prompts", nargs="*", type=int, help="their indices; default: all")
    parser.add_argument("--size", type=int, help="pixels of the longer side of an embedded image")
    parser.add_argument("--page", required=True, help="HTML to write")
    run(main, parser, outputs=["page"], inputs=["records", "scores", "summary"])
