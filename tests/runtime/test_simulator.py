"""The simulator: full runs, what becomes of them with steps skipped, and what schedulers do."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from fields import SIZE, FieldPipeline, field_pipeline
from helpers import arguments_of, tiny_pipeline

from eigencache.calibration.recording import record_kernels
from eigencache.calibration.sampler import image_seed
from eigencache.calibration.simulator import Simulator, _joined, _Record, sample_of
from eigencache.kernel import OUTPUT, step_sizes
from eigencache.methods import make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Newton, Reuse
from eigencache.runtime import cached
from eigencache.runtime._driver import Driver
from eigencache.schedules import Steps

STEPS, FULL = 10, [0, 1, 2, 5, 6]
PROMPTS = ["a cat", "a dog", "a house", "a tree", "a boat"]
SEEDS = [image_seed(7, i) for i in range(len(PROMPTS))]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS = {
    "Euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "stochastic Euler": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "DDIM": DDIMScheduler(clip_sample=False),
    "Euler of sigmas": EulerDiscreteScheduler(),
    "ancestral": EulerAncestralDiscreteScheduler(),
    "DPM++ 2M": DPMSolverMultistepScheduler(**FLOW),
    "DPM++ SDE": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
    "UniPC": UniPCMultistepScheduler(**FLOW),
    "Heun": HeunDiscreteScheduler(),
    "flow Heun": FlowMatchHeunDiscreteScheduler(),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)


def simulator(pipe, count=3, batch=16, **arguments):
    calls = [{"prompt": prompt} for prompt in PROMPTS[:count]]
    return Simulator(pipe, calls, SEEDS[:count], {"num_inference_steps": STEPS} | arguments, batch)


def plan_of(runs, full=FULL, predictor=None):
    full = [step for step in full if step < len(runs)]
    return make_plan(Steps(full), predictor or Reuse(), runs.timesteps)


def alone(pipe, index, plan=None, **arguments):
    """Return the final latents of one prompt, sampled by the runtime."""
    noise = torch.Generator().manual_seed(SEEDS[index])
    arguments = {"num_inference_steps": STEPS} | arguments
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[index])
        if plan is None:
            return pipe(PROMPTS[index], generator=noise, **arguments).images
        with cached(pipe, plan):
            return pipe(PROMPTS[index], generator=noise, **arguments).images


# ---- Full runs and plans


@every_scheduler
def test_sampling_is_that_of_the_runtime(scheduler):
    pipe = field_pipeline(scheduler=scheduler)
    runs = simulator(pipe, batch=1)
    plan = plan_of(runs)
    final, features = runs.run(plan.full, plan.weights)
    assert [len(part) for part in features] == [3] * plan.full.sum()
    for index in range(3):
        assert torch.equal(runs.batches[index].record.samples[-1], alone(pipe, index))
        assert torch.equal(final[index], alone(pipe, index, plan))
    assert not torch.equal(final[0], runs.batches[0].record.samples[-1])


@every_scheduler
@pytest.mark.parametrize("known", range(6))
def test_what_is_known_is_not_computed_and_changes_nothing(scheduler, known):
    pipe = field_pipeline(scheduler=scheduler)
    runs = simulator(pipe, batch=1)
    plan = plan_of(runs)
    final, features = runs.run(plan.full, plan.weights)
    pipe.transformer.calls.clear()
    before = runs.computed
    again, same = runs.run(plan.full, plan.weights, features[:known])
    assert all(map(torch.equal, final, again))
    assert all(torch.equal(a, b) for f, g in zip(features, same, strict=True)
               for a, b in zip(f, g, strict=True))  # fmt: skip
    assert len(pipe.transformer.calls) == 3 * (plan.full.sum() - known) == runs.computed - before


def test_prompts_are_encoded_once():
    pipe = field_pipeline()
    runs = simulator(pipe)
    assert pipe.text_encoder.calls == 1
    plan = plan_of(runs)
    runs.run(plan.full, plan.weights)
    runs.gap(plan.full, plan.weights, (), 2, None)
    assert pipe.text_encoder.calls == 1


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "stochastic Euler"])
def test_batches_change_nothing_but_rounding(name):
    """An image's noise and text are its own; only stochastic Euler takes no generators."""
    pipe = field_pipeline(scheduler=SCHEDULERS[name])
    one, all_ = (simulator(pipe, 5, batch) for batch in (1, 16))
    assert len(one.batches) == 5 and len(all_.batches) == 1
    plan = plan_of(one)
    assert one.computed == all_.computed
    before = one.computed
    ends = [torch.cat(runs.run(plan.full, plan.weights)[0]) for runs in (one, all_)]
    # Schedulers step in single precision.
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.grams, all_.grams, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.step_sizes, all_.step_sizes, rtol=1e-4)
    np.testing.assert_allclose(one.responses, all_.responses, rtol=1e-2, atol=1e-2)
    assert one.computed == all_.computed == before + 5 * len(plan.full_steps)


def test_calls_of_like_arguments_are_made_together():
    """Where calls differ in more than their texts, each group is a batch, with its own passes."""
    pipe, scales = field_pipeline(), [1.0, 3.0, 1.0, 3.0, 1.0]
    calls = [
        {"prompt": prompt, "guidance_scale": scale, "passes": 1 if scale == 1 else 2}
        for prompt, scale in zip(PROMPTS, scales, strict=True)
    ]
    joined, apart = (
        Simulator(pipe, calls, SEEDS, {"num_inference_steps": STEPS}, batch) for batch in (16, 1)
    )
    assert [len(batch.seeds) for batch in joined.batches] == [3, 2]
    assert [len(batch.record.passes[3]) for batch in joined.batches] == [1, 2]
    assert [batch.seeds for batch in apart.batches] == [[SEEDS[i]] for i in (0, 2, 4, 1, 3)]
    np.testing.assert_allclose(joined.grams, apart.grams, rtol=1e-6)
    np.testing.assert_allclose(joined.shares, apart.shares, rtol=1e-6)
    np.testing.assert_allclose(joined.kernel().matrix(), apart.kernel().matrix(), rtol=1e-6)
    plan = plan_of(joined)
    ends = [torch.cat(runs.run(plan.full, plan.weights)[0]) for runs in (joined, apart)]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)
    gaps = [runs.gap(plan.full, plan.weights, (), 2, None)[1] for runs in (joined, apart)]
    np.testing.assert_allclose(gaps[0].gram, gaps[1].gram, rtol=1e-4)


def test_calls_without_a_prompt_are_made_one_by_one():
    """There is no text in which a batch of them could differ."""
    assert _joined([{"class_labels": 3, "steps": 4}] * 3, 16) == [[0], [1], [2]]
    assert _joined([{"prompt": ["a", "b"]}] * 2, 16) == [[0], [1]]
    assert _joined([{"prompt": text} for text in "abc"], 2) == [[0, 1], [2]]


def test_a_pipeline_that_takes_one_prompt_is_called_one_by_one():
    with pytest.warns(UserWarning, match=r"does not take 3 prompts at once \(one prompt at a time"):
        runs = simulator(field_pipeline(), one_by_one=True)
    assert [len(batch.seeds) for batch in runs.batches] == [1, 1, 1]
    expected = simulator(field_pipeline(), batch=1)
    assert np.array_equal(runs.grams, expected.grams)


def test_what_is_wrong_with_a_call_is_raised():
    with pytest.warns(UserWarning), pytest.raises(TypeError, match="attic"):
        simulator(field_pipeline(), attic=3)


def test_calls_at_other_timesteps_are_refused():
    calls = [{"prompt": "a", "num_inference_steps": n} for n in (4, 5)]
    with pytest.raises(PlanError, match=r"calls 0 and 1 sample at other timesteps \(5 steps from"):
        Simulator(field_pipeline(), calls, [0, 1], {})


def test_torch_s_own_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    runs = simulator(field_pipeline(scheduler=SCHEDULERS["stochastic Euler"]))
    plan = plan_of(runs)
    runs.run(plan.full, plan.weights)
    runs.gap(plan.full, plan.weights, (), 2, None)
    assert torch.equal(torch.rand(1), expected)


def test_nothing_stays_on_the_pipeline():
    pipe = field_pipeline()
    before = id(pipe.scheduler), sorted(vars(pipe.scheduler)), sorted(vars(pipe.transformer))
    runs = simulator(pipe)
    runs.gap(*plan_arrays(runs), (), 1, None)
    after = id(pipe.scheduler), sorted(vars(pipe.scheduler)), sorted(vars(pipe.transformer))
    assert before[0] == after[0] and before[2] == after[2]
    assert not {"step", "_eigencache"} & set(after[1])


def plan_arrays(runs):
    plan = plan_of(runs)
    return plan.full, plan.weights


def test_kernels_are_of_what_the_scheduler_was_given():
    runs = simulator(field_pipeline(), 4, batch=2)
    kernel = runs.kernel({"from": "here"})
    grams = []
    for index in range(4):
        given = outputs_of(field_pipeline(), index)
        rows = torch.stack(given).flatten(1).double()
        grams.append((rows @ rows.T / SIZE).numpy())
    moved = [np.square(runs.step_sizes[1:]) @ movement(gram) for gram in grams]
    shares = np.mean(1 / np.array(moved)) * np.array(moved)
    np.testing.assert_allclose(runs.shares, 1 / shares, rtol=1e-10)
    expected = np.mean([gram / share for gram, share in zip(grams, shares, strict=True)], axis=0)
    np.testing.assert_allclose(kernel.matrix(), expected, rtol=1e-10)
    assert kernel.runs == 4 and kernel.source == {"from": "here"}
    assert kernel.model.startswith("Field-")
    assert np.array_equal(kernel.step_sizes, runs.step_sizes)


def movement(gram):
    """Return the mean square of how far outputs move from each step to the next."""
    return np.array([gram[s, s] + gram[s - 1, s - 1] - 2 * gram[s, s - 1] for s in range(1, STEPS)])


def outputs_of(pipe, index):
    """Return what the scheduler is given in a full run."""
    given, step = [], type(pipe.scheduler).step

    def watched(output, *args, **kwargs):
        given.append(output.clone())
        return step(pipe.scheduler, output, *args, **kwargs)

    pipe.scheduler.step = watched
    alone(pipe, index)
    return given


# ---- Where networks change


def test_a_second_network_and_more_passes_are_found():
    assert simulator(field_pipeline()).switches == ()
    assert simulator(field_pipeline(), passes=2, guidance_scale=2.0).switches == ()
    runs = simulator(field_pipeline(second="linear"), switch=4)
    assert runs.switches == (4,) == runs.kernel().switches
    plan = make_plan(Steps([0, 1, 4, 7]), Reuse(), runs.timesteps)
    before = runs.computed
    final, features = runs.run(plan.full, plan.weights)
    assert runs.computed == before + 3 * 4
    again, _ = runs.run(plan.full, plan.weights, features[:3])
    assert runs.computed == before + 3 * 5 and torch.equal(final[0], again[0])


# ---- How outputs move the latents


def looped(scheduler, outputs, x, seed):
    """Sample with given outputs in a plain loop."""
    scheduler, noise = copy.deepcopy(scheduler), torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(STEPS)
    takes = scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
    more = {"generator": noise} if "generator" in takes else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for output, t in zip(outputs, scheduler.timesteps, strict=True):
            x = scheduler.step(output, t, x, return_dict=False, **more)[0]
    return x


@every_scheduler
def test_step_sizes_are_finite_differences(scheduler):
    """Of a scalar problem: the outputs are any numbers, and one of them is moved a little."""
    sizes = simulator(field_pipeline(scheduler=scheduler), 1).step_sizes
    outputs = [torch.randn(1, 1, 1, 1).double() for _ in sizes]
    x = torch.randn(1, 1, 1, 1).double()
    for step, size in enumerate(sizes):
        moved = [o + (s == step) for s, o in enumerate(outputs)]
        ends = [looped(scheduler, given, x, 5) for given in (moved, outputs)]
        # Schedulers step in single precision, and some add noise of many units.
        close = 3e-5 * max(np.abs(sizes).max(), float(ends[0].abs()))
        assert float(ends[0] - ends[1]) == pytest.approx(size, rel=1e-4, abs=close)


def test_step_sizes_of_euler_are_differences_of_sigma():
    runs = simulator(field_pipeline(), 2)
    np.testing.assert_allclose(runs.step_sizes, step_sizes(runs.timesteps), rtol=1e-5, atol=1e-7)


def test_a_scheduler_that_hands_on_what_it_predicted():
    """CogVideoX's DPM wants the last step's prediction back, and the timestep before."""
    scheduler = CogVideoXDPMScheduler(rescale_betas_zero_snr=False)
    outputs = [torch.randn(1, 1, 1, 1).double() for _ in range(6)]

    def loop(outputs, x, policy=None):
        own, old = copy.deepcopy(scheduler), None
        noise = torch.Generator().manual_seed(0)
        if policy:
            pipe = field_pipeline(scheduler=own)
            driver = Driver(pipe, policy)
            driver.attach()
            own = pipe.scheduler
        own.set_timesteps(6)
        for i, (output, t) in enumerate(zip(outputs, own.timesteps, strict=True)):
            back = own.timesteps[i - 1] if i else None
            x, old = own.step(output, old, t, back, x, generator=noise, return_dict=False)
        return x

    record, x = _Record(), torch.randn(1, 1, 1, 1).double()
    loop(outputs, x, record)
    sizes = record.step_sizes()
    for step, size in enumerate(sizes):
        moved = [o + 1e-3 * (s == step) for s, o in enumerate(outputs)]
        change = float(loop(moved, x) - loop(outputs, x)) / 1e-3
        assert change == pytest.approx(size, rel=1e-3, abs=1e-6)


class Stubborn(FlowMatchEulerDiscreteScheduler):
    """A scheduler that fails in double precision."""

    def step(self, model_output, timestep, sample, return_dict=True):
        made = super().step(model_output, timestep, sample, return_dict=False)[0]
        return (made * float("nan") if sample.ndim == 4 else made,)


def test_a_scheduler_without_an_answer_is_refused():
    with pytest.raises(PlanError, match="Stubborn: its outputs do not move the latents by finite"):
        simulator(field_pipeline(scheduler=Stubborn()))


# ---- The gap behind a full step


@every_scheduler
@pytest.mark.parametrize("anchors", [None, 2])
def test_a_gap_is_told_as_the_scheduler_sees_it(scheduler, anchors):
    """Adding u_a of each feature to every output of the gap moves its end by c sum_a u_a f_a.

    Images count by their shares.
    """
    pipe = field_pipeline(scheduler=scheduler)
    runs = simulator(pipe, 2, batch=1)
    plan = plan_of(runs)
    k = 2  # behind step 2, steps 3 and 4 are skipped
    features, gap = runs.gap(plan.full, plan.weights, (), k, anchors)
    count = anchors or k + 1
    assert len(gap.toward) == count and len(features) == k + 1

    def ends(u):
        """The latents before step 5, of both images."""
        weights = plan.weights.copy()
        weights[3:5, [0, 1, 2][-count:]] += u
        found = []
        for index in range(2):
            seen, shorter = [], make_plan(Steps(FULL), Reuse(), runs.timesteps)
            shorter = type(plan)(shorter.full, weights, runs.timesteps, "output")
            kept = Keep(seen)
            with cached(pipe, shorter):
                vars(pipe)["_eigencache_driver"].policy.moved = kept
                alone_in(pipe, index)
            found.append(seen[4])
        return torch.stack(found)

    base = ends(np.zeros(count))
    target = torch.stack([batch.record.samples[5] for batch in runs.batches])
    roots = torch.tensor(runs.shares).float().sqrt().reshape(2, *[1] * (base.ndim - 1))
    moved = torch.stack([(roots * (ends(u) - base)).flatten() for u in np.eye(count)])
    away = (roots * (target - base)).flatten()
    gram, toward = (moved @ moved.T).numpy(), (moved @ away).numpy()
    size = np.sqrt(np.diag(gram))
    # In single precision, as schedulers step.
    both = np.outer(size, size)
    np.testing.assert_allclose(gap.gram / both, gram / both, atol=0.01)
    away = float(away.norm())
    np.testing.assert_allclose(gap.toward / size / away, toward / size / away, atol=0.01)


class Keep:
    """Keeps what the scheduler returned at every step."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, call, result):
        self.seen.append(sample_of(result).clone())
        return result


def alone_in(pipe, index):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[index])
        noise = torch.Generator().manual_seed(SEEDS[index])
        return pipe(PROMPTS[index], generator=noise, num_inference_steps=STEPS).images


def test_where_nothing_is_skipped_there_is_no_gap():
    runs = simulator(field_pipeline(), 2)
    plan, before = plan_of(runs), runs.computed
    features, gap = runs.gap(plan.full, plan.weights, (), 0, None)
    assert gap is None and len(features) == 1
    features, gap = runs.gap(plan.full, plan.weights, features, 1, None)
    assert gap is None and len(features) == 2
    assert runs.computed == before + 2 * 2


# ---- How outputs answer errors


def test_a_field_answers_errors_as_its_formula_says():
    """v = 0.7 x / sigma: an error e of the latents changes the output by 0.7 e / sigma."""
    runs = simulator(field_pipeline("growing"), 2, num_inference_steps=20)
    often, pull, scatter = runs.responses
    seen = often > 0
    # 2 and 4 of 20 steps are computed; at the first there is no error yet.
    assert np.flatnonzero(seen).tolist() == [5, 10, 15]
    assert often[10] == 2 * 2  # two images, with two numbers of full steps
    sigma = runs.timesteps[seen] / 1000
    np.testing.assert_allclose(pull[seen] / often[seen], 0.7 / sigma, rtol=1e-4)
    assert scatter.max() < 1e-6
    kernel = runs.kernel()
    assert np.array_equal(kernel.responses, runs.responses)
    assert (kernel.response[0] > 0).all() and kernel.response[1].max() < 1e-3


@pytest.mark.parametrize("kind", [OUTPUT, OUTPUT._replace(features="stride-8")], ids=str)
def test_calibration_measures_it_a_run_at_a_time(kind):
    """With another number of full steps for each run; whatever features the kernel is of."""
    pipe = field_pipeline("growing")
    calls = [{"prompt": p, "num_inference_steps": 20} for p in PROMPTS]
    (kernel,) = record_kernels(pipe, calls, SEEDS, [kind])
    often, pull, scatter = kernel.responses
    seen = often > 0
    assert often.sum() == 1 + 3 + 1 + 3 + 1  # 2, 4, 2, 4 and 2 steps, but for the first
    sigma = kernel.timesteps[seen] / 1000
    np.testing.assert_allclose(pull[seen] / often[seen], 0.7 / sigma, rtol=1e-4)
    assert scatter.max() < 1e-6


@every_scheduler
def test_a_field_that_is_blind_answers_nothing(scheduler):
    """A field that does not look at the latents: their errors change nothing."""
    runs = simulator(field_pipeline("forced", scheduler=scheduler), 2)
    often, pull, scatter = runs.responses
    assert often.sum() > 0 and np.abs(pull).max() < 1e-6 and scatter.max() < 1e-6


def test_a_network_that_is_never_wrong_tells_nothing():
    runs = simulator(field_pipeline("constant"), 2)
    assert not runs.responses.any()
    assert not np.any(runs.kernel().response)


# ---- On FLUX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_flux_in_any_precision(dtype):
    pipe = tiny_pipeline()
    pipe.transformer.to(dtype)
    pipe.vae.to(dtype)
    calls = [{k: v.to(dtype) for k, v in arguments_of(i).items()} for i in range(2)]
    shared = {"num_inference_steps": 6, "height": 16, "width": 16}
    runs = Simulator(pipe, calls, SEEDS[:2], shared | {"output_type": "latent"})
    assert runs.batches[0].record.samples[0].dtype == dtype
    assert runs.eps == torch.finfo(dtype).eps
    plan = make_plan(Steps([0, 1, 3]), Newton(1), runs.timesteps)
    final, _ = runs.run(plan.full, plan.weights)
    for index in range(2):
        noise = torch.Generator().manual_seed(SEEDS[index])
        with cached(pipe, plan):
            made = pipe(**calls[index], **shared, generator=noise, output_type="latent").images
        assert torch.equal(made, final[index])
    _, gap = runs.gap(plan.full, plan.weights, (), 1, None)
    assert np.isfinite(gap.gram).all() and np.linalg.eigvalsh(gap.gram).min() > 0


class Idle(FieldPipeline):
    """A pipeline that never steps its scheduler."""

    def __call__(self, prompt, generator=None):
        self.scheduler.set_timesteps(3)


def test_a_pipeline_that_never_steps_is_refused():
    parts = field_pipeline().components
    with pytest.raises(PlanError, match="Idle never called its scheduler's step"):
        Simulator(Idle(**parts), [{"prompt": "a"}], [0], {})


# ---- Pipelines that copy their scheduler


class TwoSorts(FieldPipeline):
    """Samples latents of two sorts, which the network sees together, as LTX 2 does with sound."""

    def __call__(self, prompt, num_inference_steps=STEPS, generator=None):
        with torch.no_grad():
            beside = copy.deepcopy(self.scheduler)
            beside.set_timesteps(num_inference_steps)
            self.scheduler.set_timesteps(num_inference_steps)
            text, _ = self.text_encoder(torch.full((1, SIZE), float(len(prompt))).double())
            x, y = (torch.randn(1, SIZE, generator=generator).double() for _ in range(2))
            for t in self.scheduler.timesteps:
                output = self.transformer(torch.cat([x + y, x - y]), t, text / 10)
                x = self.scheduler.step(output[:1], t, x, return_dict=False)[0]
                y = beside.step(output[1:], t, y, return_dict=False)[0]
            return [x, y]


def two_sorts():
    parts = field_pipeline().components
    parts["scheduler"] = SCHEDULERS["DPM++ 2M"]
    return TwoSorts(**parts)


@pytest.mark.parametrize("known", range(6))
def test_a_copied_scheduler_is_given_forecasts_of_its_own_outputs(known):
    pipe = two_sorts()
    runs = Simulator(pipe, [{"prompt": "a cat"}], SEEDS[:1], {})
    plan = plan_of(runs, predictor=Newton(1))
    with cached(pipe, plan):
        x, y = pipe("a cat", generator=torch.Generator().manual_seed(SEEDS[0]))
    plain = pipe("a cat", generator=torch.Generator().manual_seed(SEEDS[0]))
    assert not torch.equal(x, plain[0]) and not torch.equal(y, plain[1])
    torch.testing.assert_close(y, beside_by_hand(pipe, plan), rtol=1e-5, atol=1e-6)
    (final,), features = runs.run(plan.full, plan.weights)
    assert torch.equal(final, x)
    before = runs.computed
    (again,), _ = runs.run(plan.full, plan.weights, features[:known])
    assert torch.equal(again, x) and runs.computed - before == len(plan.full_steps) - known


def beside_by_hand(pipe, plan):
    """Return the second latents, both schedulers given the plan's sums in a plain loop."""
    one, other = (copy.deepcopy(pipe.scheduler) for _ in range(2))
    noise = torch.Generator().manual_seed(SEEDS[0])
    with torch.no_grad():
        text, _ = pipe.text_encoder(torch.full((1, SIZE), 5.0).double())
        x, y = (torch.randn(1, SIZE, generator=noise).double() for _ in range(2))
        one.set_timesteps(STEPS)
        other.set_timesteps(STEPS)
        outputs = []
        for step, t in enumerate(one.timesteps):
            output = pipe.transformer(torch.cat([x + y, x - y]), t, text / 10)
            if not plan.full[step]:
                pairs = zip(plan.weights[step], outputs, strict=False)
                output = sum(weight * made for weight, made in pairs)
            outputs.append(output)
            x = one.step(output[:1], t, x, return_dict=False)[0]
            y = other.step(output[1:], t, y, return_dict=False)[0]
    return y


def test_gaps_of_such_a_pipeline_are_fitted():
    pipe = two_sorts()
    runs = Simulator(pipe, [{"prompt": "a cat"}], SEEDS[:1], {})
    plan = plan_of(runs)
    features = ()
    for k in range(len(plan.full_steps)):
        features, _ = runs.gap(plan.full, plan.weights, features, k, None)
    (final,), same = runs.run(plan.full, plan.weights)
    for mine, expected in zip(features, same, strict=True):
        assert torch.equal(mine[0], expected[0])
    assert torch.equal(runs.run(plan.full, plan.weights, features)[0][0], final)
