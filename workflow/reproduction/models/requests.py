"""What a job asks a cluster for: main memory and minutes that follow its model.

Snakemake asks when a job is about to be submitted. Its model is there by then, and the headers of
its files say how many parameters it has.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Python, its libraries, and images in memory.
BESIDE_MB = 8000
# Of a host that reads a model from a shared disk, hashes it and copies it to a GPU.
READ_MB_PER_MINUTE = 6000
BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
# What the header of a safetensors file calls the types that a pipeline is cast from.
_CAST = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8}


def memory_mb(manifests: Iterable[str], dtype: str) -> int:
    """Return megabytes of main memory for a job that loads models, all of which pass through it.

    Args:
        manifests: of its models.
        dtype: that weights are loaded in.

    Raises:
        FileNotFoundError: a model is not fetched yet.
    """
    return BESIDE_MB + round(sum(_loaded(path, dtype) for path in manifests) / 1e6)


def minutes(manifests: Iterable[str], full_steps: float, step_seconds: float) -> int:
    """Return minutes for a job: half an hour, and twice what it takes to load and to compute.

    Args:
        manifests: of its models.
        full_steps: of the network.
        step_seconds: what one of them takes.

    Raises:
        FileNotFoundError: a model is not fetched yet.
    """
    read = sum(facts["bytes"] for path in manifests for facts in _files(path).values()) / 1e6
    return 30 + math.ceil(2 * (read / READ_MB_PER_MINUTE + full_steps * step_seconds / 60))


class Requests:
    """What the rules of an experiment give Snakemake as the resources `mem_mb` and `runtime`.

    Args:
        dtype: of the experiment.
        step_seconds: of a full step, at most.
    """

    def __init__(self, dtype: str, step_seconds: float) -> None:
        self.dtype, self.step_seconds = dtype, step_seconds

    def mem_mb(self, wildcards: Any, input: Iterable[str], attempt: int) -> int:
        """Return the megabytes of a job's n-th attempt, by the models among its input."""
        return attempt * memory_mb(_manifests(input), self.dtype)

    def runtime(self, full_steps: float | Callable[[Any], float]) -> Callable[..., int]:
        """Return what gives the minutes of a job with so many full steps, or so many by label."""

        def resource(wildcards: Any, input: Iterable[str], attempt: int) -> int:
            steps = full_steps(wildcards) if callable(full_steps) else full_steps
            return attempt * minutes(_manifests(input), steps, self.step_seconds)

        return resource


def _manifests(input: Iterable[str]) -> list[str]:
    return [path for path in input if Path(path).name == "manifest.json"]


def _files(manifest: str) -> dict[str, dict]:
    return json.loads(Path(manifest).read_text())


@functools.cache
def _loaded(manifest: str, dtype: str) -> int:
    """Return the bytes of a model's weights in a dtype."""
    total = 0
    for name, facts in _files(manifest).items():
        path = Path(manifest).parent / name
        total += _cast(path, dtype) if path.suffix == ".safetensors" else facts["bytes"]
    return total


def _cast(path: Path, dtype: str) -> float:
    """Return the bytes of a safetensors file's tensors, those of floats in another dtype."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size))
        except (ValueError, OverflowError, MemoryError):
            return path.stat().st_size  # damaged: the job that loads it says so
    header.pop("__metadata__", None)
    total = 0.0
    for tensor in header.values():
        start, end = tensor["data_offsets"]
        total += (end - start) * BITS[dtype] / _CAST.get(tensor["dtype"], BITS[dtype])
    return total
