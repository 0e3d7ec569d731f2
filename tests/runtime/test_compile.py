"""torch.compile: the documented ways compile once, whole, and change no image; others are refused.

The backend "eager" compiles nothing, but torch traces and guards for it as for any other.
"""

import pytest
import torch
from helpers import flow_timesteps, sampling, tiny_flux
from torch._dynamo.utils import counters

from eigencache.methods import make_plan
from eigencache.plan import TAPS
from eigencache.predictors import Taylor
from eigencache.runtime import cached, enable_cache
from eigencache.runtime._blocks import BLOCK_TAPS, entries_of
from eigencache.runtime._taps import tapped
from eigencache.schedules import Steps

TIMESTEPS = flow_timesteps(8)
# One for the transformer; one for each kind of block, and one more for single blocks after the
# first, whose inputs are slices; one for each kind of module (attention, projection, and an MLP
# over the image and over the text, which differ in their numbers of tokens).
GRAPHS = {"output": 1, "hidden": 3, "blocks": 3, "delta": 3, "modules": 4}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def plan_of(tap):
    return make_plan(Steps([0, 1, 2, 5]), Taylor(1), TIMESTEPS, tap=tap)


def compile_forward(module):
    module.forward = torch.compile(module.forward, backend="eager", fullgraph=True)


def compile_tapped(model, tap):
    """Compile as the text of `eigencache.runtime` says."""
    switched = entries_of(model) if tap in BLOCK_TAPS else tapped(model, tap).streams
    for module in switched.values():
        compile_forward(module)


def sampled(model, **options):
    return list(sampling(model, TIMESTEPS, **options))


def same(outputs, others):
    return all(map(torch.equal, outputs, others))


@pytest.mark.slow
@pytest.mark.parametrize("tap", TAPS)
def test_compiling_what_the_cache_switches_off_changes_nothing_and_happens_once(flux, tap):
    with cached(flux, plan_of(tap)):
        plain = sampled(flux), sampled(flux, seed=1)
    compile_tapped(flux, tap)
    with cached(flux, plan_of(tap)) as stats:
        assert same(sampled(flux), plain[0])
        graphs = counters["stats"]["unique_graphs"]
        assert same(sampled(flux, seed=1), plain[1])
        assert same(sampled(flux), plain[0])
    assert (stats.full, stats.skipped) == (12, 12)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
    assert graphs == GRAPHS[tap]


@pytest.mark.slow
def test_blocks_compiled_by_diffusers_serve_the_output_tap(flux):
    with cached(flux, plan_of("output")):
        plain = sampled(flux)
    flux.compile_repeated_blocks(backend="eager", fullgraph=True)
    with cached(flux, plan_of("output")):
        assert same(sampled(flux), plain)
        graphs = counters["stats"]["unique_graphs"]
        assert same(sampled(flux), plain)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs <= 3


def in_place(model):
    model.compile(backend="eager")


def wrapped(model):
    return torch.compile(model, backend="eager")


def blocks_in_place(model):
    model.compile_repeated_blocks(backend="eager")


def around_blocks(model):
    compile_forward(model)


def around_modules(model):
    for block in entries_of(model).values():
        compile_forward(block)


@pytest.mark.parametrize(
    ("compile_it", "tap", "named"),
    [
        (in_place, "output", "the transformer"),
        (wrapped, "output", "the transformer"),
        (wrapped, "blocks", "the transformer"),
        (blocks_in_place, "hidden", r"transformer_blocks\.0"),
        (blocks_in_place, "modules", r"transformer_blocks\.0"),
        (around_blocks, "delta", "the transformer"),
        (around_modules, "modules", r"transformer_blocks\.0"),
    ],
)
def test_what_would_compile_the_cache_is_refused(compile_it, tap, named):
    model = tiny_flux()
    compiled = compile_it(model)
    compiled = model if compiled is None else compiled
    with pytest.raises(ValueError, match=f"^{named} is compiled, and the cache"):
        enable_cache(compiled, plan_of(tap))
    with cached(tiny_flux(), plan_of(tap)) as stats:
        sampled(tiny_flux())
    assert not stats.full
