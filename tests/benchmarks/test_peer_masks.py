"""cache-dit at the full steps of our plans (`benchmarks/peers/masks.py`)."""

import pytest
from helpers import arguments_of, tiny_pipeline

from eigencache.methods import make_plan
from eigencache.predictors import Taylor
from eigencache.schedules import Steps

pytestmark = pytest.mark.slow
pytest.importorskip("cache_dit", reason="cache-dit has an environment of its own")

from benchmarks.peers import masks  # noqa: E402
from benchmarks.peers.compare import sampled  # noqa: E402

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
