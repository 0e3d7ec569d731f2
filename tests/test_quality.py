"""Plans for a quality: the cheapest is found, whatever the qualities, in few tries."""

import numpy as np
import pytest
from conftest import flow_timesteps

from eigencache.methods import METHODS
from eigencache.plan import Plan, predicted_psnr
from eigencache.quality import FEWEST, cheapest

TIMESTEPS = flow_timesteps(50)
BUDGETS = range(FEWEST, 26)


class Planner:
    """Plans whose predicted PSNR is a given function of the budget; counts what it made."""

    def __init__(self, quality):
        self.quality, self.made = quality, []

    def __call__(self, budget: int) -> Plan:
        self.made.append(budget)
        full = np.zeros(50, bool)
        full[:budget] = True
        weights = np.zeros((50, 50))
        weights[budget:, 0] = 1
        source = {"predicted psnr": str(self.quality(budget))}
        return Plan(full, weights, TIMESTEPS, "output", source=source)


@pytest.mark.parametrize("wanted", [30, 41.9, 42, 42.1, 50, 64.9, 65])
@pytest.mark.parametrize("quality", [lambda b: 40 + b, lambda b: 60 + 5 * np.log(b / 25)])
def test_the_cheapest_plan_is_found(quality, wanted):
    planner = Planner(quality)
    good = [b for b in BUDGETS if quality(b) >= wanted]
    if not good:
        with pytest.raises(ValueError, match="out of reach: 25 full steps are predicted"):
            cheapest(planner, wanted, BUDGETS)
        return
    assert sum(cheapest(planner, wanted, BUDGETS).full) == good[0]
    assert len(planner.made) == len(set(planner.made)) <= 12


def test_cheap_plans_are_tried_first():
    planner = Planner(lambda b: 40 + b)
    cheapest(planner, 46, BUDGETS)
    assert max(planner.made) <= 7


def test_a_plan_says_nothing_of_its_quality_unless_asked():
    assert np.isnan(predicted_psnr(METHODS["FORA"].plan(9, TIMESTEPS)))
