"""The operations of an image: torch's counter around the whole run says the same."""

import pytest
import torch
from helpers import arguments_of, tiny_pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eigencache import METHODS, cached
from reproduction.flops import CPU_ATTENTION, Meter

STEPS = 8
PLANS = [
    ("FORA", {"tap": "output"}),
    ("TaylorSeer", {"order": 1}),
    *(
        pytest.param(*plan, marks=pytest.mark.slow)
        for plan in (("TaylorSeer", {"order": 1, "tap": "blocks"}), ("ToCa", {}))
    ),
]


def call(pipe, seed=0, steps=STEPS, size=16):
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        **arguments_of(seed), num_inference_steps=steps, height=size, width=size,
        generator=generator, output_type="latent",
    ).images  # fmt: skip


def counted(make) -> int:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        make()
    return counter.get_total_flops()


def timesteps_of(pipe):
    call(pipe)
    return pipe.scheduler.timesteps.double().numpy()


def test_attention_on_a_cpu_is_one_operation():
    """Torch does not document it: `CPU_ATTENTION`, by which operations of attention are counted."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(getattr(function, "overloadpacket", None))
            return function(*args, **kwargs or {})

    tokens = torch.ones(1, 2, 4, 8)
    with Watch(), torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    assert CPU_ATTENTION.keys() <= seen


def test_full_runs_cost_what_the_counter_says_and_are_not_changed():
    pipe = tiny_pipeline()
    expected, image = counted(lambda: call(pipe)), call(pipe)
    meter = Meter(pipe)
    assert torch.equal(call(pipe), image)
    assert meter.operations() == expected > 0
    call(pipe, steps=4)
    assert meter.operations() == expected / 2
    call(pipe, size=32)
    assert meter.operations() > 3 * expected
    assert meter.operations() == 0


@pytest.mark.parametrize(("method", "options"), PLANS)
def test_skipped_steps_cost_what_runs_at_them(method, options):
    pipe = tiny_pipeline()
    plan = METHODS[method].plan(4, timesteps_of(pipe), **options)

    def again():
        with cached(pipe, plan):
            return call(pipe)

    full, expected, image = counted(lambda: call(pipe)), counted(again), again()
    meter, made = Meter(pipe), []
    for _ in range(2):  # the second is not counted anew
        assert torch.equal(again(), image)
        assert meter.operations(plan, lambda: made.append(again())) == expected
    if plan.tap == "output":
        assert expected == full * plan.full.sum() / STEPS and not made
    else:
        assert full * plan.full.sum() / STEPS < expected < full and len(made) == 1


def test_nothing_is_counted_while_an_image_is_made(monkeypatch):
    pipe = tiny_pipeline()
    meter = Meter(pipe)
    call(pipe)
    meter.operations()
    monkeypatch.setattr("reproduction.flops._counter", None)  # would raise if it were called
    call(pipe, seed=1)
    assert meter.operations() > 0


def test_models_that_take_turns_on_the_device_are_counted_too():
    pipe = tiny_pipeline()
    expected = counted(lambda: call(pipe))
    pipe.enable_model_cpu_offload(device="cpu")
    meter = Meter(pipe)
    plan = METHODS["FORA"].plan(4, timesteps_of(pipe), tap="output")
    assert meter.operations() == expected
    with cached(pipe, plan):
        call(pipe)
    assert meter.operations(plan) == expected / 2
