"""The caches of cache-dit and diffusers on every tiny pipeline of the tests.

    build/peers/cache-dit/bin/python -m benchmarks.peers.matrix

from the project's folder, in cache-dit's environment: about a minute on one core. Writes
data/benchmarks/pipelines-peers.csv, a row per cache and configuration:

    outcome   works: fewer modules run, the latents differ from an uncached run's and repeat, and
              without the cache they are the uncached run's again
              no effect: the latents are the uncached run's
              fails: anything else; `why` says what
    computed  the calls of the networks' innermost modules, as a share of the uncached run's

Thresholds always skip, so the outcomes say whether a cache works on a pipeline, nothing of quality.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from cache_dit import DBCacheConfig
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from tqdm import tqdm

from benchmarks.peers.cache_dit import BASE, enabled
from benchmarks.pipelines import ROOT
from reproduction.tables.tables import write_table

sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
from zoo import ZOO
from zoo.runs import check_same, counting, recorded

FILE = ROOT / "data" / "benchmarks" / "pipelines-peers.csv"
ALWAYS = 1e9  # a threshold that nothing exceeds
WORKS, NO_EFFECT, FAILS = "works", "no effect", "fails"


Enable = Callable[[Any, int], AbstractContextManager]


def of_diffusers(make: Callable[[int], Any]) -> Enable:
    """Return what samples with a cache of diffusers on those networks that take one."""

    @contextlib.contextmanager
    def sampling(case: Any, steps: int) -> Iterator[None]:
        networks = [n for n in case.denoisers().values() if hasattr(n, "enable_cache")]
        if not networks:
            raise AttributeError("its networks have no enable_cache")
        for network in networks:
            network.enable_cache(make(steps))
        yield
        for network in networks:
            network.disable_cache()

    return sampling


CACHES: dict[str, Enable] = {
    # Two first steps: some of the pipelines take but four.
    "cache-dit DBCache": lambda case, steps: enabled(
        case.pipe,
        None,
        DBCacheConfig(**BASE | {"max_warmup_steps": 2}, residual_diff_threshold=ALWAYS),
    ),
    "diffusers FirstBlockCache": of_diffusers(lambda steps: FirstBlockCacheConfig(ALWAYS)),
    "diffusers TaylorSeerCache": of_diffusers(
        lambda steps: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2)
    ),
    "diffusers MagCache": of_diffusers(
        lambda steps: MagCacheConfig(
            ALWAYS, num_inference_steps=steps, mag_ratios=torch.ones(steps)
        )
    ),
}


def tried(name: str, enable: Enable) -> dict[str, Any]:
    """Return the outcome of one cache on one configuration, which is built anew."""
    case = ZOO[name]()
    plain = recorded(case)
    row = {"configuration": name, "pipeline": type(case.pipe).__name__, "computed": None, "why": ""}
    try:
        with enable(case, len(plain)):
            with counting(case.denoisers()) as calls:
                found = case(0)
            row["computed"] = calls.total() / sum(c.total() for c in plain.calls)
            if all(map(torch.equal, found, plain.result)):
                return row | {"outcome": NO_EFFECT}
            check_same(case(0), found)
        check_same(case(0), plain.result)
        if row["computed"] >= 1:
            raise ValueError("no fewer modules run")
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return row | {"outcome": FAILS, "why": why[:120]}
    return row | {"outcome": WORKS}


def main(out: Path) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    for cache, enable in CACHES.items():
        package = cache.split()[0]
        about = {"cache": cache, "version": version(package)}
        rows += [about | tried(name, enable) for name in tqdm(ZOO, desc=cache)]
        write_table(pd.DataFrame(rows).round(4), out)  # what is finished stays


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    main(parser.parse_args().out)
