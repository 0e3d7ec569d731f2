"""The pipelines of the zoo, each built once and sampled once without a cache."""

import pytest
from zoo import ZOO
from zoo.runs import Measured, check_same

# What stays in the fast part: one of each kind of network, guidance, scheduler and output.
FAST = {
    "flux", "sd15", "sdxl-controlnet", "qwen-true-cfg", "hidream", "wan22", "ltx2-one-pass",
    "cosmos", "stable-audio",
}  # fmt: skip


assert ZOO.keys() >= FAST


@pytest.fixture(
    scope="session",
    params=[n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ZOO],
)
def measured(request):
    made = Measured(ZOO[request.param]())
    yield made
    check_same(made.case(0), made.plain.result)  # nothing is left of what the tests did
