"""Manifests: beside every result of a stage, `X`, stands `X.json`, which says where it came from.

A manifest holds the hash of its result, everything the result depends on (the stage's settings and
their hash, its code, the hashes of the files it read, models, package, libraries), the device, and
the seeds; no time of day, so that a repeated run gives an equal one. `reproduction.stages.run`
writes them all, and checks them before a stage reads a result. The result is written first, its
manifest last, and each is whole or absent; so a manifest that agrees with its file proves that the
job came to its end, and a crash in between leaves a file that every reader refuses until the job is
run again. Manifests are no outputs that Snakemake knows of: whatever becomes of one, the next run
of its job writes it anew. An image's hash stands in the records, which a manifest covers, and a
model's files have theirs in `models/{model}/manifest.json`. Plans, kernels and trajectories are
also handed about alone, so they carry a hash of their contents within (`eigencache._files`).
"""

import argparse
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jsonschema import Draft202012Validator, ValidationError

from eigencache._files import replacing, sha256
from reproduction.provenance import code as provenance

FORMAT = "eigencache-manifest-1"

_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_HASHES = {"type": "object", "additionalProperties": _HASH}
_MODEL = {
    "type": "object",
    "required": ["sha256", "revision"],
    "properties": {"sha256": _HASH, "revision": {"type": ["string", "null"]}},
}
_ENTRIES = {
    "format": {"const": FORMAT},
    "sha256": _HASH,
    "bytes": {"type": "integer"},
    "stage": {"type": "string"},
    "code": {"type": "string"},
    "config": _HASH,
    "settings": {"type": "object"},
    "inputs": _HASHES,
    "sources": _HASHES,
    "models": {"type": "object", "additionalProperties": _MODEL},
    "seeds": {"type": "object", "additionalProperties": {"type": "integer"}},
    "devices": {"type": "array", "items": {"type": "string"}},
    "package": {"type": "object"},
    "libraries": {"type": "object"},
    "manifest": _HASH,
}
# Of scores: a metric to the package and version that computed it and the hashes of its weights.
_MORE = {"metrics": {"type": "object"}}
_SCHEMA = {"type": "object", "required": list(_ENTRIES), "properties": _ENTRIES | _MORE}


class ManifestError(ValueError):
    """A result is damaged, or its manifest is missing, damaged or not its own."""


def manifest_path(path: str | os.PathLike) -> Path:
    """Return where the manifest of a result stands."""
    return Path(f"{os.fspath(path)}.json")


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
    module, data = _module(main)
    stage = module.rpartition(".")[2]
    seeds = {stage: arguments.seed} if "seed" in settings else {}
    return {
        "stage": module,
        "code": provenance.source_hash(module, *data),
        "config": _hash(settings),
        "settings": settings,
        "inputs": {path: found["sha256"] for path, found in earlier.items()},
        "sources": {path: sha256(path) for path in paths(arguments, sources)},
        "models": _union(earlier, "models")
        | {path: _model(path) for path in paths(arguments, models)},
        "seeds": _union(earlier, "seeds") | seeds,
        "devices": sorted({name for found in earlier.values() for name in found["devices"]}),
        "package": provenance.package(),
        "libraries": provenance.libraries(),
    }


def write(path: str | os.PathLike, shared: Mapping) -> None:
    """Write the manifest of a result that is whole; `shared` is from `begin`.

    If Snakemake was killed and started again, two processes may be at the same job. Each looks once
    more when its manifest stands, so that the last manifest is of the last result.
    """
    devices = sorted({*shared["devices"], provenance.device()})
    about = {"format": FORMAT, "sha256": "", "bytes": 0, **shared, "devices": devices}
    while about["sha256"] != (found := sha256(path)):
        about |= {"sha256": found, "bytes": Path(path).stat().st_size}
        text = json.dumps(about | {"manifest": _hash(about)}, indent=1, ensure_ascii=False)
        with replacing(manifest_path(path)) as part:
            part.write_text(text + "\n", encoding="utf-8")


def read(path: str | os.PathLike) -> dict:
    """Return the manifest of a result, without a look at the result itself.

    Raises:
        ManifestError: it is missing or damaged; the message says what to do.
    """
    where = manifest_path(path)
    again = f"delete {path} and run again"
    if not where.is_file():
        raise ManifestError(f"{path}: there is no {where} to check it by; {again}")
    try:
        about = json.loads(where.read_bytes())
        Draft202012Validator(_SCHEMA).validate(about)
        faulty = about.pop("manifest") != _hash(about)
    except (ValueError, RecursionError, ValidationError) as error:
        reason = getattr(error, "message", error)
        raise ManifestError(f"{where}: damaged or no manifest ({reason}); {again}") from error
    if faulty:
        raise ManifestError(f"{where}: damaged (it does not have the hash stored in it); {again}")
    return about


def check(path: str | os.PathLike, digest: Callable[[str], str] = sha256) -> dict:
    """Return the manifest of a result, after checking the result against it.

    Args:
        path: of the result.
        digest: gives the SHA-256 of a file, from its path.

    Raises:
        FileNotFoundError: there is no such result.
        ManifestError: it is damaged, or its manifest is missing or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; run again to make it")
    about = read(path)
    if about["bytes"] != Path(path).stat().st_size or about["sha256"] != digest(str(path)):
        raise ManifestError(
            f"{path}: damaged, or its job did not end (its bytes are not those that "
            f"{manifest_path(path)} tells of); delete {path} and run again"
        )
    return about


def changed(about: Mapping, digest: Callable[[str], str] = sha256) -> list[str]:
    """Return which of the files that a result was made from are others now, of those still there.

    Args:
        about: the result's manifest.
        digest: gives the SHA-256 of a file, from its path.
    """
    models = {path: model["sha256"] for path, model in about["models"].items()}
    known = {**about["inputs"], **about["sources"], **models}
    return [path for path in known if Path(path).is_file() and digest(path) != known[path]]


def paths(arguments: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Return the paths that the arguments of these names hold: each none, one or several."""
    found: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        found += [value] if isinstance(value, str) else value or []
    return found


def _setting(value):
    """Return an argument as it is, or, where it is a JSON object in text, that object."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value


def _module(main: Callable) -> tuple[str, list[str]]:
    """Return the full name of a stage's module, and the names of the data files beside it."""
    file = Path(inspect.getfile(main)).resolve()
    beside = (path for path in file.parent.iterdir() if path.is_file())
    return provenance.module_of(file), sorted(path.name for path in beside if path.suffix != ".py")


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


def _hash(values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
