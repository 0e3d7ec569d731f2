"""What happens to cached pipelines in use: side by side, stopped, copied, compiled, offloaded."""

import copy
import threading
import warnings
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from zoo import ZOO
from zoo.runs import HALF_WAY, Measured, calling, check_same, kept, recorded, reused, twin

import eigencache
from eigencache import cached
from eigencache.built_in import Budget
from eigencache.calibration.recording import outline
from eigencache.plan import PlanWarning
from eigencache.predictors import Reuse
from eigencache.runtime._built_in import built_in_plan
from eigencache.schedules import Interval, Steps

NAMES = ["flux", "flux-inpaint", "sdxl-controlnet", "qwen-true-cfg", "wan22", "ltx2-one-pass"]
FAST = ("flux", "flux-inpaint", "wan22")


def marked(names, fast=FAST):
    """Return names for `parametrize`, those marked slow that are not in the fast part."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture(scope="module", params=marked(NAMES))
def measured(request):
    return Measured(ZOO[request.param]())


def of(*names, fast=FAST):
    """Take some of the configurations only."""
    return pytest.mark.parametrize("measured", marked(names, fast), indirect=True)


class Stopped(Exception):
    pass


# ---- Side by side


def test_an_image_of_another_pipeline_half_way(measured):
    other = Measured(ZOO[measured.case.name]())
    other.full = ~np.isin(np.arange(len(other.plain)), (2, 3, 5)) | measured.full
    expected, between = measured.expected(), []
    with cached(measured.case.pipe, measured.plan()), cached(other.case.pipe, other.plan()):
        made = measured.case(0, **calling(lambda pipe: between.append(other.case(1))))
    check_same(made, expected)
    check_same(between[0], other.expected(1))


def test_two_caches_on_the_same_networks(measured):
    other, between = twin(measured.case), []
    full = np.arange(len(measured.plain)) < 4
    full[measured.plain.switches] = True
    with cached(measured.case.pipe, measured.plan()):
        with cached(other.pipe, measured.plan(full)):
            made = measured.case(0, **calling(lambda pipe: between.append(other(1))))
        check_same(other(0), measured.plain.result)
        check_same(measured.case(0), made)
    check_same(made, measured.expected())
    check_same(between[0], reused(measured.case, full, 1))


def test_a_pipeline_made_from_a_cached_one_is_its_own(measured):
    expected = measured.expected()
    with cached(measured.case.pipe, measured.plan()):
        other = twin(measured.case)
        check_same(measured.case(0), expected)
        try:
            check_same(other(0), measured.plain.result)
        except ValueError as error:
            assert "made from a cached pipeline" in str(error)
        check_same(measured.case(0), expected)
    check_same(other(0), measured.plain.result)
    check_same(measured.case(0), measured.plain.result)


# ---- A second expert, and calls that begin to differ half way


@pytest.mark.parametrize("name", ["wan22", "z-image-cfg-truncated"])
@pytest.mark.parametrize("method", ["FORA", "EigenCache-greedy", "EigenCache-design"])
def test_a_step_at_which_calls_change_is_full_and_within_the_budget(name, method):
    case = ZOO[name]()
    prompts = [case.prompt(1), case.prompt(2)]
    for full_steps in (3, 5):
        plan = eigencache.calibrate(
            case.pipe, prompts, full_steps, method=method, tap="output", **case.shared()
        )
        with cached(case.pipe, plan) as stats:
            first = case(0)
            assert stats.full == full_steps
            check_same(case(0), first)
        assert stats.full == 2 * full_steps


@pytest.mark.parametrize("name", ["wan22", "z-image-cfg-truncated", "sd35-skip-layers"])
def test_a_plan_without_a_calibration_keeps_its_budget_where_the_pipeline_is_outlined(name):
    case = ZOO[name]()
    timesteps, kept, guidance = outline(case.pipe, case.shared() | case.prompt(1))
    assert kept
    plans = [
        eigencache.METHODS["TaylorSeer"].plan(4, timesteps, tap="output", kept=kept),
        built_in_plan(case.pipe.scheduler, timesteps, guidance, Budget(4), kept),
    ]
    for plan in plans:
        assert plan.full.sum() == 4 and plan.full[[0, *kept]].all()
        with cached(case.pipe, plan) as stats:
            case(0)
        assert stats.full == 4


def test_where_it_was_not_known_it_is_full_in_every_image():
    case = ZOO["wan22"]()
    run = recorded(case)
    (switch,) = run.switches
    plan = eigencache.METHODS["FORA"].plan(3, run.timesteps, tap="output")
    assert not plan.full[switch]
    with cached(case.pipe, plan) as stats:
        first = case(0)
        check_same(case(0), first)
    assert stats.full == 2 * 4


# ---- Stopped, interfered with


def test_an_exception_half_way_is_forgotten(measured):
    def stop(pipe):
        raise Stopped

    expected = measured.expected(1)
    with cached(measured.case.pipe, measured.plan()):
        with pytest.raises(Stopped):
            measured.case(0, **calling(stop))
        check_same(measured.case(1), expected)


def test_an_interrupt_half_way_is_forgotten(measured):
    def interrupt(pipe):
        pipe._interrupt = True

    if not hasattr(type(measured.case.pipe), "interrupt"):
        pytest.skip("the pipeline cannot be interrupted")
    expected = [measured.expected(number) for number in (0, 1)]
    with cached(measured.case.pipe, measured.plan()):
        stopped = measured.case(0, **calling(interrupt))
        assert not any(map(torch.equal, stopped, expected[0]))
        check_same(measured.case(1), expected[1])
    check_same(measured.case(0), measured.plain.result)


def test_a_callback_that_changes_the_latents_is_heard(measured):
    def halved(pipe, index, timestep, tensors):
        return {"latents": tensors["latents"] / 2 if index == HALF_WAY else tensors["latents"]}

    expected = reused(measured.case, measured.full, callback_on_step_end=halved)
    assert not any(map(torch.equal, expected[:1], measured.expected()[:1]))
    with cached(measured.case.pipe, measured.plan()):
        check_same(measured.case(0, callback_on_step_end=halved), expected)


@of("flux", "flux-inpaint", "sdxl-controlnet")
def test_a_preview_is_decoded_at_every_step(measured):
    vae, latents, seen = measured.case.pipe.vae, torch.ones(1, 4, 8, 8), []

    def decode(pipe, index, timestep, tensors):
        seen.append(pipe.vae.decode(latents).sample)
        seen.append(pipe.vae(torch.ones(1, 3, 16, 16)).sample)
        return {}

    previews = vae.decode(latents).sample, vae(torch.ones(1, 3, 16, 16)).sample
    expected = measured.expected()
    with cached(measured.case.pipe, measured.plan()):
        check_same(measured.case(0, callback_on_step_end=decode), expected)
    check_same(seen, list(previews) * len(measured.plain))


def test_a_denoiser_called_between_images_runs(measured):
    name, network = next(iter(measured.case.denoisers().items()))
    seen = []
    hook = network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    measured.case(0)
    hook.remove()
    args, kwargs = seen[-1]

    def output():
        found = network(*args, **kwargs)
        return [found[0] if isinstance(found, tuple) else found.sample]

    with torch.no_grad():
        try:
            expected = output()
        except Exception:
            pytest.skip(f"{name} cannot be called without its pipeline")
        with cached(measured.case.pipe, measured.plan()):
            check_same(output(), expected)
            measured.case(0)
            check_same(output(), expected)


def test_a_second_thread_gets_an_error(measured):
    """The image that is under way goes on; what the newcomer has set of the pipeline, it sees."""
    case, expected = measured.case, measured.expected()
    paused, go, ended = threading.Event(), threading.Event(), {}

    def sample(name, **changes):
        try:
            ended[name] = case(0, **changes)
        except ValueError as error:
            ended[name] = error

    def wait(pipe):
        paused.set()
        assert go.wait(30)

    with cached(case.pipe, measured.plan()):
        first = threading.Thread(target=sample, args=["first"], kwargs=calling(wait))
        first.start()
        assert paused.wait(30)
        sample("second")
        go.set()
        first.join()
        assert "one image at a time" in str(ended["second"])
        assert all(part.isfinite().all() for part in ended["first"])
        check_same(case(0), expected)  # nothing is left of it


def test_a_second_cache_of_ours_is_refused(measured):
    before, expected = kept(measured.case), measured.expected()
    with cached(measured.case.pipe, measured.plan()):
        with (
            pytest.raises(ValueError, match="already enabled"),
            cached(measured.case.pipe, measured.plan()),
        ):
            pass
        check_same(measured.case(0), expected)
    assert kept(measured.case) == before


@of("qwen-true-cfg")
@pytest.mark.parametrize("stated", [{}, {"true_cfg_scale": 2.0}], ids=["default", "stated"])
def test_guidance_that_a_pipeline_does_not_say_is_read_from_its_call(measured, stated):
    """Qwen-Image keeps the scale in a variable; if it is not stated, it is the default."""
    case, made = measured.case, stated.get("true_cfg_scale", 4.0)
    shared = {k: v for k, v in case.shared().items() if k != "true_cfg_scale"} | stated
    plan = eigencache.calibrate(case.pipe, [case.prompt(1)], 4, **shared)
    assert plan.arguments["true_cfg_scale"] == made
    with warnings.catch_warnings(), cached(case.pipe, plan):
        warnings.simplefilter("error", PlanWarning)
        case(0, true_cfg_scale=made)
    expected = f"made at true_cfg_scale {made:g}, called with 9"
    with cached(case.pipe, plan), pytest.warns(PlanWarning, match=expected):
        case(0, true_cfg_scale=9.0)


@of("flux", "qwen-true-cfg", "wan22")
def test_a_cache_of_cache_dit_below_or_above_ours_is_refused(measured):
    """The mark is the one that cache-dit sets (`tests/core/test_upstream.py`)."""
    for network in measured.case.denoisers().values():
        network._is_cached = True
        try:
            refused = pytest.raises(
                ValueError, match=r"call cache_dit\.disable_cache\(pipe\) first"
            )
            with refused, cached(measured.case.pipe, measured.plan()):
                pass
        finally:
            del network._is_cached
        with cached(measured.case.pipe, measured.plan()):
            network._is_cached = True
            try:
                with pytest.raises(ValueError, match="a cache of cache-dit is enabled"):
                    measured.case(0)
            finally:
                del network._is_cached
    check_same(measured.case(0), measured.plain.result)


@of("flux", "qwen-true-cfg", "wan22")
def test_a_cache_of_diffusers_below_ours_is_refused(measured):
    for network in measured.case.denoisers().values():
        network.enable_cache(TaylorSeerCacheConfig())
        try:
            with (
                pytest.raises(ValueError, match="a cache of diffusers is enabled"),
                cached(measured.case.pipe, measured.plan()),
            ):
                pass
        finally:
            network.disable_cache()
        check_same(measured.case(0), measured.plain.result)


@of("flux", "qwen-true-cfg", "wan22")
def test_a_cache_of_diffusers_above_ours_is_refused(measured):
    expected = measured.expected()
    for network in measured.case.denoisers().values():
        with cached(measured.case.pipe, measured.plan()):
            try:
                with pytest.raises(ValueError, match="a cache"):
                    network.enable_cache(TaylorSeerCacheConfig())
                    measured.case(0)
            finally:
                network.disable_cache()
            check_same(measured.case(0), expected)
        check_same(measured.case(0), measured.plain.result)


def test_another_number_of_steps_is_refused_by_both_numbers(measured):
    expected = measured.expected()
    steps = {"num_inference_steps": 5}
    if "strength" in measured.case.arguments():
        steps["strength"] = 1.0
    with cached(measured.case.pipe, measured.plan()):
        with pytest.raises(eigencache.PlanError, match=rf"{len(measured.plain)}.*\b5\b"):
            measured.case(0, **steps)
        check_same(measured.case(0), expected)


# ---- Batches, types of numbers


def several(measured):
    name = "num_images_per_prompt"
    names = type(measured.case.pipe).__call__.__annotations__
    return {name if name in names else "num_videos_per_prompt": 2}


@of("flux", "flux-inpaint", "sdxl-controlnet", "qwen-true-cfg", "wan22")
def test_several_images_of_a_prompt(measured):
    two = several(measured)
    expected, one = reused(measured.case, measured.full, **two), measured.expected()
    assert len(expected[0]) == 2 * len(one[0])
    with cached(measured.case.pipe, measured.plan()):
        check_same(measured.case(0), one)
        check_same(measured.case(0, **two), expected)
        check_same(measured.case(0), one)


def stacked(case, numbers):
    """Return the arguments of several prompts in one call."""
    parts = [case.prompt(number) for number in numbers]
    embeddings = [name for name in parts[0] if "embeds" in name]
    found = {name: torch.cat([part[name] for part in parts]) for name in embeddings}
    masks = {k: v for k, v in case.arguments(0).items() if k.endswith("mask") and v.ndim == 2}
    found |= {name: torch.cat([mask] * len(parts)) for name, mask in masks.items()}
    return found | {"generator": [torch.Generator().manual_seed(n) for n in numbers]}


@of("flux", "qwen-true-cfg", "wan22")
def test_a_batch_of_prompts(measured):
    def batch():
        return stacked(measured.case, (1, 2, 3))

    expected, one = reused(measured.case, measured.full, **batch()), measured.expected()
    assert len(expected[0]) == 3
    with cached(measured.case.pipe, measured.plan()):
        check_same(measured.case(0, **batch()), expected)
        check_same(measured.case(0), one)
        check_same(measured.case(0, **batch()), expected)


def halved(value):
    """Return tensors in bfloat16."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.bfloat16()
    return value


def test_bfloat16(measured):
    case = ZOO[measured.case.name]()
    case.pipe.to(torch.bfloat16)
    changes = {name: halved(value) for name, value in case.arguments(0).items()}
    changes.pop("generator")
    plain = recorded(case, **changes)
    np.testing.assert_array_equal(plain.timesteps, measured.plain.timesteps)
    with cached(case.pipe, measured.plan([True] * len(plain))):
        check_same(case(0, **changes), plain.result)
    expected = reused(case, measured.full, **changes)
    with cached(case.pipe, measured.plan()):
        check_same(case(0, **changes), expected)
    assert all(network.dtype == torch.bfloat16 for network in case.denoisers().values())


@of("flux", "wan22")
def test_weights_in_float8(measured):
    case = ZOO[measured.case.name]()
    for network in case.denoisers().values():
        network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    plain, expected = recorded(case), reused(case, measured.full)
    assert not torch.equal(plain.result[0], measured.plain.result[0])
    with cached(case.pipe, measured.plan()):
        check_same(case(0), expected)
    check_same(case(0), plain.result)


# ---- Copied, saved


def test_a_copied_plan_is_the_same(measured):
    plan, expected = copy.deepcopy(measured.plan()), measured.expected()
    with cached(measured.case.pipe, plan):
        check_same(measured.case(0), expected)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


@of("flux", "sdxl-controlnet", "wan22")
def test_a_cached_pipeline_saves_what_it_would_save_otherwise(measured, tmp_path):
    measured.case(0)
    measured.case.pipe.save_pretrained(tmp_path / "plain")
    with cached(measured.case.pipe, measured.plan()):
        measured.case(0)
        measured.case.pipe.save_pretrained(tmp_path / "cached")
    plain, saved = files(tmp_path / "plain"), files(tmp_path / "cached")
    assert plain.keys() == saved.keys()
    assert [name for name in plain if plain[name] != saved[name]] == []


# ---- Compiled


class Counted:
    """A backend of torch.compile that runs what it is given, and counts how often."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def compile_whole(pipe, backend):
    for name in ("transformer", "transformer_2", "unet"):
        if getattr(pipe, name, None) is not None:
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend=backend))


def compile_in_place(pipe, backend):
    for name in ("transformer", "transformer_2", "unet"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).compile(backend=backend)


def compile_blocks(pipe, backend):
    for name in ("transformer", "transformer_2", "unet"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).compile_repeated_blocks(backend=backend)


@of("flux", "wan22", "sdxl-controlnet", fast=["flux"])
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(compile_whole, marks=pytest.mark.slow),
        pytest.param(compile_in_place, marks=pytest.mark.slow),
        compile_blocks,
    ],
)
def test_compiled_networks(measured, way):
    case, backend = ZOO[measured.case.name](), Counted()
    torch._dynamo.reset()
    way(case.pipe, backend)
    if way is compile_whole:
        case.denoisers = dict  # hooks on what is compiled would be compiled too
    case(0)
    backend.runs = 0
    plain = case(0)
    whole = backend.runs
    for one, other in zip(plain, measured.plain.result, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with cached(case.pipe, measured.plan()) as stats:
        for number in (0, 1):
            backend.runs = 0
            made = case(number)
            for one, other in zip(made, measured.expected(number), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert backend.runs == whole * measured.full.sum() / len(measured.full)
    assert stats.full == 2 * measured.full.sum()
    assert stats.skipped == 2 * (~measured.full).sum()
    check_same(case(0), plain)


# ---- Offloaded


@of("flux", "sdxl-controlnet", "wan22", "qwen-true-cfg")
@pytest.mark.parametrize("first", ["offloading", "cache"])
def test_offloading(measured, first):
    case = ZOO[measured.case.name]()
    if first == "offloading":
        case.pipe.enable_model_cpu_offload(device="cpu")
    with cached(case.pipe, measured.plan()) as stats:
        if first == "cache":
            case.pipe.enable_model_cpu_offload(device="cpu")
        for number in (0, 1, 0):
            check_same(case(number), measured.expected(number))
    assert stats.full == 3 * measured.full.sum()
    check_same(case(0), measured.plain.result)
    moved = []
    name, network = next(iter(case.denoisers().items()))
    hook = network._hf_hook
    move = type(hook).pre_forward
    hook.pre_forward = lambda module, *a, **k: (moved.append(name), move(hook, module, *a, **k))[1]
    case(0)
    assert moved  # offloading is still on


@of("flux", "sdxl-controlnet", "wan22")
@pytest.mark.parametrize("first", ["offloading", "cache"])
def test_sequential_offloading(measured, first, monkeypatch):
    """Every layer's weights are fetched when it runs, and are on no device in between."""
    offload = accelerate.cpu_offload  # diffusers asks for cpu:0, which is no device to torch's `to`
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda model, device, **k: offload(model, "cpu", **k)
    )
    case = ZOO[measured.case.name]()
    if first == "offloading":
        case.pipe.enable_sequential_cpu_offload(device="cpu")
    with cached(case.pipe, measured.plan()) as stats:
        if first == "cache":
            case.pipe.enable_sequential_cpu_offload(device="cpu")
        for number in (0, 1, 0):
            check_same(case(number), measured.expected(number))
    assert stats.full == 3 * measured.full.sum()
    check_same(case(0), measured.plain.result)
    for network in case.denoisers().values():
        assert all(weight.is_meta for weight in network.parameters())  # it is still on


# ---- LoRA, by PEFT itself


def write_lora(name, folder):
    """Write a LoRA with random weights for a configuration's transformer."""
    peft = pytest.importorskip("peft")
    case = ZOO[name]()
    network = case.pipe.transformer
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    draw = torch.Generator().manual_seed(0)
    layers = {
        key: torch.randn(weight.shape, generator=draw)
        for key, weight in peft.get_peft_model_state_dict(network).items()
    }
    case.pipe.save_lora_weights(folder, transformer_lora_layers=layers)


@pytest.mark.parametrize("name", ["flux", "qwen-true-cfg", "wan21", "sd3"])
def test_a_lora_is_loaded_and_unloaded_around_a_cache_and_under_it(name, tmp_path):
    write_lora(name, tmp_path)
    plain, other = Measured(ZOO[name]()), ZOO[name]()
    other.pipe.load_lora_weights(tmp_path)
    lora = Measured(other)
    assert not torch.equal(lora.plain.result[0], plain.plain.result[0])
    case = ZOO[name]()
    case.pipe.load_lora_weights(tmp_path)
    with cached(case.pipe, lora.plan()) as stats:
        check_same(case(0), lora.expected())
        case.pipe.unload_lora_weights()
        check_same(case(0), plain.expected())
        case.pipe.load_lora_weights(tmp_path)
        check_same(case(0), lora.expected())
    assert stats.full == 3 * lora.full.sum()
    check_same(case(0), lora.plain.result)
    case.pipe.unload_lora_weights()
    check_same(case(0), plain.plain.result)


@pytest.mark.parametrize("tap", ["blocks", "modules"])
def test_a_lora_under_an_inner_tap_is_right_or_refused(tap, tmp_path):
    write_lora("flux", tmp_path)
    case = ZOO["flux"]()
    case.pipe.load_lora_weights(tmp_path)
    lora = recorded(case)
    every = eigencache.make_plan(Steps(range(len(lora))), Reuse(), lora.timesteps, tap=tap)
    some = eigencache.make_plan(Interval(full_steps=4), Reuse(), lora.timesteps, tap=tap)
    with cached(case.pipe, every):
        check_same(case(0), lora.result)
    with cached(case.pipe, some):
        expected = case(0)
        assert not torch.equal(expected[0], lora.result[0])
        check_same(case(0), expected)
        case.pipe.unload_lora_weights()
        try:
            without = case(0)
        except eigencache.PlanError as error:
            assert "was replaced" in str(error)
        else:
            fresh = ZOO["flux"]()
            with cached(fresh.pipe, some):
                check_same(without, fresh(0))
