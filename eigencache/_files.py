"""Files that are whole or absent (write beside, then rename), their hashes, and arrays in them."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it onto `path` only if the block succeeds.

    A killed job or a full disk leaves `path` as it was, and nothing half-written beside it that
    could be taken for a result. The suffix is kept, since many writers choose the format by it.

    Raises:
        OSError: what the block raised while writing (for instance no space left on the device).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}"
    )
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        # mkstemp makes private files; results are meant to be read by others.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_arrays(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], format: str, metadata: dict[str, str]
) -> None:
    """Write arrays and metadata as safetensors; `format` names what the file holds.

    A hash of all contents stands in the metadata too, so that damage is noticed wherever the file
    is read. The same contents give the same bytes.
    """
    # A transposed view would be written as the array it is a view of.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = metadata | {"format": format}
    with replacing(path) as part:
        save_file(arrays, part, metadata | {"sha256": contents_hash(arrays, metadata)})
        _sort_metadata(part)


def read_arrays(
    path: str | os.PathLike, format: str, error: type[ValueError]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file that states this `format`.

    Raises:
        FileNotFoundError: there is no such file.
        error: the file is damaged or states another format; the message says what to do.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError) as damage:
        raise error(f"{path}: damaged or not safetensors ({damage}); make it again") from damage
    if metadata.get("format") != format:
        raise error(f"{path}: its format is {metadata.get('format')!r}, expected {format!r}")
    stored = metadata.pop("sha256", None)
    if stored != contents_hash(arrays, metadata):
        raise error(
            f"{path}: damaged (its contents do not have the hash stored in it); make it again"
        )
    return arrays, metadata


def contents_hash(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """Return the SHA-256 of names, data types, shapes, metadata and values."""
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([shapes, metadata], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, which its writer shuffles at every call."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))
