"""cache-dit on the models of `benchmarks.built_in`, in its own environment.

    build/peers/cache-dit/bin/python -m benchmarks.peers.small OUT.csv data/emoji-flux SMALL/*

The arguments, the images and the cells are those of `benchmarks.built_in`, and rows are added to
its table, as `cache-dit, ...`. At an interval the first three steps are full and then as many as
make the budget or the next more. A threshold is searched for on the very images that judge, which
favours cache-dit; each decides alone. Of what is tried, the fewest full steps count that are in the
mean no fewer than the budget, or by less than `compare.NEAR`.

The first block, of four in the small models and ten in emoji-flux, is computed at every step
besides. So `EigenCache built in, compute of cache-dit` has as many more full steps as that makes.

U-Nets are left out: they have no list of blocks, which is what cache-dit takes.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch

from benchmarks.built_in import CELLS, COLUMNS, GUIDANCE, IMAGES, METHOD, Bench
from benchmarks.peers.cache_dit import contestants, interval
from benchmarks.peers.compare import NEAR, counted, search
from benchmarks.peers.contestant import Contestant, Study
from benchmarks.peers.sampling import blocks_of
from benchmarks.rows import append, command_line, read
from training.kernels import Subject, subject_of

OURS = f"{METHOD}, compute of cache-dit"
METHODS = ("interval + TaylorSeer-1", "interval + DMD", "DBCache + TaylorSeer-1")


class Counting(Bench):
    """A bench that samples by contestants and counts their full steps."""

    def sampled(
        self, guidance: float, steps: int, contestant: Contestant, **setting
    ) -> tuple[float, float]:
        """Return the PSNR to the full run, as `psnr`, and the mean number of full steps."""
        size = 1 if contestant.alone else IMAGES
        images, full_steps = [], 0
        for start in range(0, IMAGES, size):
            with contestant.apply(self.pipe, **setting), counted(self.pipe.transformer) as calls:
                images.append(self.sample(guidance, steps, slice(start, start + size)))
            full_steps += len(calls) * size
        return self.beside(torch.cat(images), guidance, steps), full_steps / IMAGES

    def best(self, guidance: float, steps: int, contestant: Contestant, full_steps: int) -> float:
        """Return the PSNR with the fewest full steps that are not, or hardly, below a budget."""
        if not contestant.thresholds:
            setting = interval(steps, full_steps, at_least=True)
            return self.sampled(guidance, steps, contestant, **setting)[0]
        found: dict[float, tuple[float, float]] = {}

        def counts(threshold: float) -> float:
            found[threshold] = self.sampled(guidance, steps, contestant, threshold=threshold)
            return found[threshold][1]

        search(counts, full_steps, contestant.thresholds, {})
        enough = [tried for tried in found.values() if tried[1] > full_steps - NEAR]
        return min(enough, key=lambda tried: tried[1])[0]


def rows_of(subject: Subject, done: set[tuple]) -> Iterator[dict]:
    """Yield the rows of a model that are not done."""
    if not hasattr(subject.pipe.transformer, "transformer_blocks"):
        print(f"{subject.name}: left out, it has no list of blocks")
        return
    bench, blocks = Counting(subject), len(blocks_of(subject.pipe.transformer))
    for guidance, (steps, full_steps) in product(GUIDANCE, CELLS):
        alike = full_steps + (steps - full_steps) // blocks
        made = {OURS: partial(bench.psnr, guidance, steps, METHOD, alike)}
        made |= {
            f"cache-dit, {theirs.method}": partial(bench.best, guidance, steps, theirs, full_steps)
            for theirs in contestants(Study(steps, None, None))
            if theirs.method in METHODS
        }
        for method, psnr in made.items():
            key = subject.name, str(steps), str(full_steps), f"{guidance:.1f}", method
            if key not in done:
                yield dict(zip(COLUMNS, (*key, round(psnr(), 3)), strict=True))


def main() -> None:
    """Fill the table."""
    arguments = command_line(__doc__)
    torch.set_num_threads(1)
    done = {tuple(row[name] for name in COLUMNS[:5]) for row in read(arguments.out)}
    for folder in arguments.models:
        append(arguments.out, COLUMNS, rows_of(subject_of(folder), done))


if __name__ == "__main__":
    main()
