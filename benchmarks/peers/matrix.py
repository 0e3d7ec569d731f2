"""The caches of cache-dit and diffusers on every tiny pipeline of the tests.

    build/peers/cache-dit/bin/python -m benchmarks.peers.matrix

from the project's folder, in cache-dit's environment: about ten minutes on one core. Writes
data/benchmarks/pipelines-peers.csv, a row per cache and configuration:

    outcome   works: fewer modules run, the latents differ from an uncached run's and repeat, and
              without the cache they are the uncached run's again
              no effect: the latents are the uncached run's
              fails: anything else; `why` says what
    computed  the calls of the networks' innermost modules, as a share of the uncached run's

Thresholds always skip, so the outcomes say whether a cache works on a pipeline, nothing of quality.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cache_dit
import pandas as pd
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from tqdm import tqdm

from benchmarks.pipelines import ROOT
from reproduction.tables.tables import write_table

sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
from zoo import ZOO
from zoo.runs import check_same, counting, recorded

FILE = ROOT / "data" / "benchmarks" / "pipelines-peers.csv"
ALWAYS = 1e9  # a threshold that nothing exceeds
WORKS, NO_EFFECT, FAILS = "works", "no effect", "fails"


def dbcache(case: Any, steps: int) -> Callable[[], None]:
    """Enable cache-dit; return what disables it."""
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, residual_diff_threshold=ALWAYS
    )
    cache_dit.enable_cache(case.pipe, cache_config=config)
    return lambda: cache_dit.disable_cache(case.pipe)


def of_diffusers(make: Callable[[int], Any]) -> Callable[[Any, int], Callable[[], None]]:
    """Return what enables a cache of diffusers on those networks of a pipeline that take one."""

    def enable(case: Any, steps: int) -> Callable[[], None]:
        networks = [n for n in case.denoisers().values() if hasattr(n, "enable_cache")]
        if not networks:
            raise AttributeError("its networks have no enable_cache")
        for network in networks:
            network.enable_cache(make(steps))
        return lambda: [network.disable_cache() for network in networks]  # type: ignore[return-value]

    return enable


CACHES = {
    "cache-dit DBCache": dbcache,
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


def tried(name: str, enable: Callable[[Any, int], Callable[[], None]]) -> dict[str, Any]:
    """Return the outcome of one cache on one configuration, which is built anew."""
    case = ZOO[name]()
    plain = recorded(case)
    row = {"configuration": name, "pipeline": type(case.pipe).__name__, "computed": None, "why": ""}
    try:
        disable = enable(case, len(plain))
        with counting(case.denoisers()) as calls:
            found = case(0)
        row["computed"] = calls.total() / sum(c.total() for c in plain.calls)
        if all(map(torch.equal, found, plain.result)):
            return row | {"outcome": NO_EFFECT}
        check_same(case(0), found)
        disable()
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
