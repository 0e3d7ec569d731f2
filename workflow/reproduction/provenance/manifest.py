"""Manifests: every result `X` of a stage has an `X.json` that says where it came from.

A manifest holds the hash of its result, everything the result depends on (the stage's settings and
their hash, its code, the hashes of the files it read, models, package, libraries), the device, and
the seeds. It holds no time of day, so that a repeated run gives an equal one.
`reproduction.program.run` writes them all, and checks them before a stage reads a result. The
result is written first, its manifest last, and each is whole or absent; so a manifest that agrees
with its file proves that the job came to its end, and a crash in between leaves a file that every
reader refuses until the job is run again. Manifests are not outputs in Snakemake's sense: whatever
happens to one, the next run of its job rewrites it. An image's hash is in the records, which a
manifest covers, and a model's files have theirs in `models/{model}/manifest.json`. Plans, kernels
and trajectories also travel without their manifest, so they contain a hash of their contents
(`eigencache._files`).
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from eigencache._files import sha256

FORMAT = "eigencache-manifest-1"

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Model(TypedDict):
    """A model that a result rests on: the hash of its manifest, and where it came from."""

    sha256: Hash
    revision: str | None


class Manifest(TypedDict):
    """What a manifest holds; docs/provenance.md explains every entry."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    format: Literal["eigencache-manifest-1"]
    sha256: Hash
    bytes: int
    stage: str
    code: str
    config: Hash
    settings: dict[str, Any]
    inputs: dict[str, Hash]
    sources: dict[str, Hash]
    models: dict[str, Model]
    seeds: dict[str, int]
    devices: list[str]
    package: dict[str, Any]
    libraries: dict[str, Any]
    # Of scores: a metric to the package and version that computed it, and its weights' hashes.
    metrics: NotRequired[dict[str, Any]]
    manifest: NotRequired[Hash]  # in the file alone, where it is the hash of all other entries


_FILE = TypeAdapter(Manifest)


class ManifestError(ValueError):
    """A result is damaged, or its manifest is missing, damaged or not its own."""


def manifest_path(path: str | os.PathLike) -> Path:
    """Return the path of a result's manifest."""
    return Path(f"{os.fspath(path)}.json")


def read(path: str | os.PathLike) -> Manifest:
    """Return the manifest of a result, without checking the result itself.

    Raises:
        ManifestError: it is missing or damaged; the message says what to do.
    """
    where = manifest_path(path)
    again = f"delete {path} and run again"
    if not where.is_file():
        raise ManifestError(f"{path}: there is no {where} to check it by; {again}")
    try:
        about = _FILE.validate_json(where.read_bytes())
        faulty = about.pop("manifest", None) != hash_of(about)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise ManifestError(f"{where}: damaged or no manifest ({reason}); {again}") from error
    if faulty:
        raise ManifestError(f"{where}: damaged (it does not have the hash stored in it); {again}")
    return about


def check(path: str | os.PathLike, digest: Callable[[str], str] = sha256) -> Manifest:
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


def changed(about: Manifest, digest: Callable[[str], str] = sha256) -> list[str]:
    """Return which files that a result was made from have changed since, if they still exist.

    Args:
        about: the result's manifest.
        digest: gives the SHA-256 of a file, from its path.
    """
    models = {path: model["sha256"] for path, model in about["models"].items()}
    known = {**about["inputs"], **about["sources"], **models}
    return [path for path in known if Path(path).is_file() and digest(path) != known[path]]


def hash_of(values) -> str:
    """Return the SHA-256 of values as JSON, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
