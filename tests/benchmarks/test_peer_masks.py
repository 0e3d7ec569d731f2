"""cache-dit at the full steps of our plans (`benchmarks/peers/masks.py`)."""

import pytest
import torch
from helpers import arguments_of, tiny_pipeline

from eigencache.methods import make_plan
from eigencache.predictors import Taylor
from eigencache.schedules import Steps
from training.kernels import Subject
from training.small import Small, network_of, pipeline_of

pytestmark = pytest.mark.slow
pytest.importorskip("cache_dit", reason="cache-dit has an environment of its own")

from benchmarks.peers import masks, small  # noqa: E402
from benchmarks.peers.cache_dit import contestants  # noqa: E402
from benchmarks.peers.compare import NEAR, sampled  # noqa: E402
from benchmarks.peers.contestant import Study  # noqa: E402

SETTINGS = {"num_inference_steps": 10, "height": 16, "width": 16}


def test_cache_dit_computes_the_full_steps_of_a_plan_and_no_others():
    pipe, cases = tiny_pipeline(), [(arguments_of(0), 0)]
    before, _ = sampled(pipe, cases, SETTINGS)
    full = [0, 1, 5, 8]
    plan = make_plan(Steps(full), Taylor(order=1), pipe.scheduler.timesteps)
    made = {c.method: sampled(pipe, cases, SETTINGS, c) for c in masks.contestants({"mine": plan})}
    assert {steps for _, steps in made.values()} == {len(full)}
    assert len(made) == 2 * len(masks.CALIBRATORS) + 1
    # The weights are not in the mask: the same steps give other images.
    assert not any((made["mine"][0] == made[m][0]).all() for m in made if m != "mine")
    assert (sampled(pipe, cases, SETTINGS)[0] == before).all()


@pytest.mark.parametrize("method", small.METHODS)
def test_cache_dit_computes_as_many_steps_of_a_small_model_as_asked_or_more(method):
    torch.manual_seed(0)
    model = Small("shapes", "flow", 1, {"shift": 1.5}, side=8, width=48, layers=4)
    network = network_of(model, 3, 10)
    for parameter in network.parameters():  # the last layers are zero at first
        parameter.data.normal_(std=0.1)
    bench = small.Counting(Subject("tiny", pipeline_of(model, network)))
    (contestant,) = (c for c in contestants(Study(20, None, None)) if c.method == method)
    tried, sampled = [], bench.sampled

    def remembered(*arguments, **setting):
        tried.append(sampled(*arguments, **setting))
        return tried[-1]

    bench.sampled = remembered
    best = bench.best(3.0, 20, contestant, 7)
    psnr, full_steps = min((t for t in tried if t[1] > 7 - NEAR), key=lambda t: t[1])
    assert best == psnr > 10
    assert contestant.thresholds or full_steps in (7, 8)
    every_step = {"threshold": 1e-9} if contestant.thresholds else {"every": 1}
    with contestant.apply(bench.pipe, **every_step):
        assert torch.equal(bench.sample(3.0, 20), bench.reference(3.0, 20))
