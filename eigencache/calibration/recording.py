"""Recording: the features of full runs, and the kernels that they sum up to."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from eigencache.calibration.sampler import Settings, image_seed, sample
from eigencache.kernel import Kernel
from eigencache.runtime._taps import FEATURES, fingerprint, tapped, watching

# Under which a kernel's source says how the pipeline was called, as JSON, and with which seed.
SETTINGS, SEED = "settings", "seed"


@contextlib.contextmanager
def recording(
    transformer: nn.Module, tap: str, features: str
) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record the features of a tap's streams inside a `with` block.

    Yields:
        stream name to one float32 `[D]` tensor a call, compressed as `features` says
        (`eigencache.runtime._taps.FEATURES`), on the CPU.
    """
    compress = FEATURES[features]
    streams = tapped(transformer, tap).streams
    trajectory: dict[str, list[torch.Tensor]] = {stream: [] for stream in streams}

    def keep(record: list[torch.Tensor], feature: object) -> None:
        record.append(compress(feature).cpu())

    with contextlib.ExitStack() as stack:
        for name, stream in streams.items():
            stack.enter_context(watching(stream, partial(keep, trajectory[name])))
        yield trajectory


class Kind(NamedTuple):
    """Which kernel: its tap, features and normalisation, and of how many runs (None: all)."""

    tap: str
    features: str
    normalisation: str
    runs: int | None = None

    @classmethod
    def of(cls, name: str) -> "Kind":
        """Read TAP.FEATURES.NORMALISATION or that and .RUNS."""
        tap, features, normalisation, *runs = name.split(".")
        return cls(tap, features, normalisation, *map(int, runs))


def record_kernels(
    pipe: Any, texts: Sequence[dict], settings: Settings, seed: int,
    kinds: list[Kind],
) -> list[Kernel]:  # fmt: skip
    """Return one kernel for each kind, from a full run of every prompt.

    Only one trajectory is held at a time, so memory does not grow with the number of prompts.

    Args:
        pipe: from `eigencache.calibration.sampler.load_encoded`.
        texts: with it, of calibration prompts; run `i` has the noise of `image_seed(seed, i)`.
        settings: how to call the pipeline.
        seed: of the calibration; it must differ from every evaluation seed.
        kinds: of the kernels.
    """
    kernels: dict[int, Kernel] = {}
    source = {SEED: str(seed), SETTINGS: json.dumps(asdict(settings))}
    for index, text in enumerate(tqdm(texts, desc="calibrate", unit="run")):
        with contextlib.ExitStack() as stack:
            recorded = {
                what: stack.enter_context(recording(pipe.transformer, *what))
                for what in {kind[:2] for kind in kinds}
            }
            sample(pipe, text, settings, image_seed(seed, index))
        timesteps = pipe.scheduler.timesteps.double().cpu().numpy()
        for i, (tap, features, normalisation, runs) in enumerate(kinds):
            if runs is not None and index >= runs:
                continue
            trajectory = {
                stream: torch.stack(steps).numpy()
                for stream, steps in recorded[tap, features].items()
            }
            kernel = Kernel.of_run(
                trajectory, timesteps, normalisation, tap=tap, features=features,
                model=fingerprint(pipe.transformer), source=source,
            )  # fmt: skip
            kernels[i] = kernels[i] + kernel if i in kernels else kernel
    return [kernels[i] for i in range(len(kinds))]
