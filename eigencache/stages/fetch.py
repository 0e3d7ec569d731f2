"""Fetch: put a model's files into models/, each checked against the size and hash it must have.

`data/models.tsv` pins every file: model, source (a folder of this repository), path, bytes, sha256.
"""

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from eigencache.files import replacing, sha256
from eigencache.stages import run


class FetchError(ValueError):
    """A model is unknown, or one of its files is missing, damaged or not the one pinned."""


def pinned(table: str | Path, model: str) -> pd.DataFrame:
    """Return the rows of `table` that pin the files of `model`.

    Raises:
        FetchError: there are none; the message lists the models there are.
    """
    rows = pd.read_csv(table, sep="\t", dtype={"sha256": str})
    mine = rows[rows["model"] == model]
    if mine.empty:
        raise FetchError(f"{table}: no model {model!r}; it has {sorted(set(rows['model']))}")
    return mine


def fetch(table: str | Path, model: str, folder: str | Path) -> None:
    """Copy the pinned files of `model` into `folder`, then write `manifest.json` there.

    The manifest (file to its bytes and sha256) is written last: where it stands, the model is
    whole. A file that is already right is left alone.

    Raises:
        FetchError: a source file is missing or not the one pinned; nothing wrong is put in place.
    """
    folder = Path(folder)
    rows = pinned(table, model)
    manifest = {}
    for row in tqdm(list(rows.itertuples()), desc=f"fetch {model}", unit="file"):
        target = folder / row.path
        if _mismatch(target, row.bytes, row.sha256):
            _copy(Path(row.source) / row.path, target, row.bytes, row.sha256)
        manifest[row.path] = {"bytes": int(row.bytes), "sha256": row.sha256}
    with replacing(folder / "manifest.json") as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")


def verified(manifest: str | Path) -> Path:
    """Return the folder of a fetched model, after checking every file against its manifest.

    Raises:
        FetchError: a file is missing, truncated or altered; the message says what to do.
    """
    folder = Path(manifest).parent
    for name, pinned in json.loads(Path(manifest).read_text()).items():
        path = folder / name
        fault = _mismatch(path, pinned["bytes"], pinned["sha256"])
        if fault:
            raise FetchError(f"{path}: {fault}; delete {manifest} and run again to fetch it anew")
    return folder


def pin(model: str, source: str | Path) -> pd.DataFrame:
    """Return the rows that pin every file below the folder `source` as the model's.

    Its card is left out (README, pictures, reports): a word changed there is not another model.
    """
    files = sorted(
        path
        for path in Path(source).rglob("*")
        if path.is_file()
        and path.suffix not in (".md", ".png")
        and not path.relative_to(source).parts[0].startswith("report")
    )
    return pd.DataFrame(
        {
            "model": model,
            "source": Path(source).as_posix(),
            "path": [p.relative_to(source).as_posix() for p in files],
            "bytes": [p.stat().st_size for p in files],
            "sha256": [sha256(p) for p in files],
        }
    )


def _copy(source: Path, target: Path, size: int, digest: str) -> None:
    fault = _mismatch(source, size, digest)
    if fault:
        raise FetchError(f"{source}: {fault}; restore it (git checkout -- {source})")
    with replacing(target) as part:
        shutil.copyfile(source, part)


def _mismatch(path: Path, size: int, digest: str) -> str | None:
    """Return what is wrong with a file, or None."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes, {size} are pinned"
    if sha256(path) != digest:
        return f"its sha256 is not the pinned {digest[:12]}..."
    return None


def main(arguments: argparse.Namespace) -> None:
    if arguments.pin:
        rows = pin(arguments.model, arguments.pin)
        if Path(arguments.table).is_file():
            kept = pd.read_csv(arguments.table, sep="\t")
            rows = pd.concat([kept[kept["model"] != arguments.model], rows])
        with replacing(arguments.table) as part:
            rows.to_csv(part, sep="\t", index=False)
        return
    fetch(arguments.table, arguments.model, Path(arguments.manifest).parent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("fetch", description=__doc__)
    parser.add_argument("--table", default="data/models.tsv")
    parser.add_argument("--model", required=True)
    parser.add_argument("--manifest", help="write the model's folder, this file in it last")
    parser.add_argument("--pin", metavar="FOLDER", help="pin this folder in the table instead")
    run(main, parser)
