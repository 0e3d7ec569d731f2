"""Writing manifests: what a job knows about its result before it starts and at its end."""

import argparse
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from eigencache._files import replacing, sha256
from reproduction.prompts import images_of
from reproduction.provenance import code, facts
from reproduction.provenance.manifest import (
    FORMAT,
    ManifestError,
    check,
    hash_of,
    manifest_path,
)


def begin(
    main: Callable, arguments: argparse.Namespace, *, outputs: Iterable[str],
    inputs: Iterable[str], sources: Iterable[str], models: Iterable[str],
) -> dict:  # fmt: skip
    """Check what a stage is about to read, and return what its results' manifests will share.

    Args:
        main: the stage's function; its module is the stage.
        arguments: of the command line.
        outputs: the names of the arguments that are paths to write.
        inputs: of those that are results of earlier stages; each must agree with its manifest.
        sources: of those that are other files to read.
        models: of those that are manifests of models.

    Raises:
        ManifestError: an input is damaged or has no manifest.
        OSError: a file is missing or cannot be read.
    """
    earlier = {path: check(path) for path in paths(arguments, inputs)}
    settings = {
        name: _setting(value) for name, value in vars(arguments).items() if name not in outputs
    }
    module = code.module_of(Path(inspect.getfile(main)))
    stage = module.rpartition(".")[2]
    seeds = {stage: arguments.seed} if "seed" in settings else {}
    return {
        "stage": module,
        "code": code.source_hash(module),
        "config": hash_of(settings),
        "settings": settings,
        "inputs": {path: found["sha256"] for path, found in earlier.items()},
        "sources": {path: sha256(path) for path in _with_images(paths(arguments, sources))},
        "models": _union(earlier, "models")
        | {path: _model(path) for path in paths(arguments, models)},
        "seeds": _union(earlier, "seeds") | seeds,
        "devices": sorted({name for found in earlier.values() for name in found["devices"]}),
        "package": facts.package(),
        "libraries": facts.libraries(),
    }


def write(path: str | os.PathLike, shared: Mapping) -> None:
    """Write the manifest of a result that is whole; `shared` is from `begin`.

    If Snakemake was killed and started again, two processes may run the same job. Each checks again
    after writing its manifest, so that the last manifest describes the last result.
    """
    devices = sorted({*shared["devices"], facts.device()})
    about = {"format": FORMAT, "sha256": "", "bytes": 0, **shared, "devices": devices}
    while about["sha256"] != (found := sha256(path)):
        about |= {"sha256": found, "bytes": Path(path).stat().st_size}
        text = json.dumps(about | {"manifest": hash_of(about)}, indent=1, ensure_ascii=False)
        with replacing(manifest_path(path)) as part:
            part.write_text(text + "\n", encoding="utf-8")


def paths(arguments: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Return the paths that the arguments of these names hold: each none, one or several."""
    found: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        found += [value] if isinstance(value, str) else value or []
    return found


def _with_images(sources: Iterable[str]) -> Iterator[str]:
    """Yield files, and the images that those among them name which are prompts."""
    for path in sources:
        yield path
        if Path(path).suffix in (".jsonl", ".tsv"):
            yield from images_of(path)


def _setting(value):
    """Return an argument as it is; if it is the text of a JSON object, return the object."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value


def _model(path: str) -> dict[str, str | None]:
    """Return the hash of a model's manifest, which has its files' hashes, and its revision.

    The revision is where the files came from, for a hub with the commit; None if they are files of
    this repository, which the package's commit pins.
    """
    try:
        files = json.loads(Path(path).read_bytes()).values()
        origins = sorted({facts["source"] for facts in files if "source" in facts})
        revision = " ".join(origins) or None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"{path}: damaged ({error}); delete it and run again") from error
    return {"sha256": sha256(path), "revision": revision}


def _union(earlier: Mapping[str, Mapping], key: str) -> dict:
    return {name: value for about in earlier.values() for name, value in about[key].items()}
