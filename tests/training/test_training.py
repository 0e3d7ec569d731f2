"""The training of emoji-flux: captions, painting, tokens, training steps, guidance, proof."""

import copy
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from capture import DEVICE, Uncapturable, capturing
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

from training import data, distil, flow, proof, steps, text, vae

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def selection() -> list[data.Emoji]:
    """The pinned emoji."""
    return data.read_selection(ROOT / "data" / "emoji" / "emoji.tsv")


@pytest.fixture(scope="module")
def tokenizers(selection):
    """Both tokenizers."""
    return text.build_tokenizers(selection)


@pytest.fixture(scope="module")
def icons() -> torch.Tensor:
    """Three drawn icons: a red square, a green bar that lies, a blue bar that stands."""
    icons = torch.zeros(3, 4, data.SIZE, data.SIZE)
    icons[0, (0, 3), 16:112, 16:112] = 1
    icons[1, (1, 3), 48:80, 8:120] = 1
    icons[2, (2, 3), 8:120, 48:80] = 1
    return icons


def row_of(selection: list[data.Emoji], line: str) -> tuple[int, int, int]:
    """The row (left, right, colour) of a caption."""
    index = {emoji.subject: emoji.index for emoji in selection}
    subjects, colour = re.fullmatch(r"(.+) on a (\w+) background", line).groups()
    left, *right = subjects.split(" and ")
    second = index[right[0]] if right else len(selection)
    return index[left], second, data.COLOURS.index(colour)


def test_captions_say_what_they_show(selection):
    assert len({emoji.subject for emoji in selection}) == len(selection)
    lines = ["an eggplant on a white background", "cherries on a pink background"]
    lines += ["a panda and a red apple on a blue background"]
    for line in lines:
        assert proof.line_of(selection, row_of(selection, line)) == line
    for row in data.triples(len(selection), False)[::5003].tolist():
        assert row_of(selection, proof.line_of(selection, row)) == tuple(row)


def test_one_background_per_emoji_is_held_out(selection):
    held_out, trained = data.pairs(selection, True), data.pairs(selection, False)
    assert [emoji for emoji, _ in held_out] == list(range(len(selection)))
    assert not set(held_out) & set(trained)
    assert len(held_out) + len(trained) == len(selection) * len(data.COLOURS)


def test_held_out_couples_are_held_out_in_both_orders(selection):
    count = len(selection)
    trained, held_out = (data.triples(count, kind) for kind in (False, True))
    couples = trained[:, :2].min(axis=1) * count + trained[:, :2].max(axis=1)
    hidden = held_out[:, :2].min(axis=1) * count + held_out[:, :2].max(axis=1)
    assert not np.isin(hidden, couples).any()
    for left, right, colour in trained[::997].tolist():
        assert not data.is_held_out(left, colour) and not data.is_held_out(right, colour)
    assert 0.1 < len(held_out) / (len(trained) + len(held_out)) < 0.15


def test_prompt_files_respect_the_split(selection):
    count, lines = len(selection), {}
    for name in ("calibration", "evaluation", "card"):
        path = ROOT / "data" / "prompts" / f"emoji-{name}.txt"
        lines[name] = path.read_text(encoding="utf-8").splitlines()
        for left, right, colour in (row_of(selection, line) for line in lines[name]):
            out = data.is_held_out(left, colour)
            if right < count:
                out = data.is_held_out_together(left, right)
            assert out == (name != "calibration")
    assert [len(kept) for kept in lines.values()] == [64, 64, 32]
    assert sum(" and " in line for line in lines["card"]) == 16
    everything = list(itertools.chain(*lines.values()))
    assert len(set(everything)) == len(everything)
    apart = {*lines["calibration"], *lines["evaluation"]}
    judged = [
        proof.line_of(selection, row) for row in proof.choose(selection, 100, 50, apart).tolist()
    ]
    assert len(set(judged)) == 150 and not apart & set(judged)
    assert sum(" and " in line for line in judged) == 50
    with pytest.raises(ValueError, match="317 held-out captions are wanted, there are 284"):
        proof.choose(selection, 317, 0, apart)


def test_painting_is_set_by_the_seed(icons):
    painter = data.Painter(icons, CPU, 64)
    pictures = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        pictures.append(painter.one(torch.tensor([0]), torch.tensor([5])))
    first, again, other = pictures
    assert first.shape == (1, 3, 64, 64) and first.abs().max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first[0, 2, 0, 0] > first[0, 0, 0, 0]  # the corner shows the blue background
    assert first[0, 0, 32, 32] > 0.9 and first[0, 2, 32, 32] < -0.9  # the middle the red square


def test_two_things_are_side_by_side_in_the_caption_s_order(icons):
    painter = data.Painter(icons, CPU, 64)
    torch.manual_seed(0)
    white = torch.zeros(20, dtype=torch.long)
    pictures = painter.two(torch.full((20,), 1), torch.full((20,), 2), white)
    green = (pictures[:, 1] - pictures[:, 0] > 1).float().flatten(1)
    blue = (pictures[:, 2] - pictures[:, 0] > 1).float().flatten(1)
    across = torch.arange(64.0).repeat(64)
    assert ((green * across).sum(1) / green.sum(1) < 24).all()
    assert ((blue * across).sum(1) / blue.sum(1) > 40).all()


def test_a_thing_is_painted_where_and_as_large_as_its_jitter_says(icons):
    painter = data.Painter(icons, CPU, 128)
    still = data.Jitter(size=(0.9, 0.9), across=0.0, down=0.0, degrees=0.0)
    canvas = painter.put(torch.ones(1, 3, 128, 128), torch.tensor([0]), 0.5, still)
    red = canvas[0, 1] < 0.5
    assert red.sum() == pytest.approx((0.9 * 96) ** 2, rel=0.03)
    assert torch.equal(red, red.flip(0)) and torch.equal(red, red.flip(1))


def test_composed_tokens_are_the_tokenizer_s_own(selection, tokenizers):
    count = len(selection)
    random = np.random.default_rng(0)
    rows = [(emoji, count, emoji % 8) for emoji in range(count)]
    rows += [tuple(row) for row in random.permutation(data.triples(count, False))[:500].tolist()]
    longest = sorted(selection, key=lambda emoji: -len(emoji.subject.split()))[:2]
    rows += [(longest[0].index, longest[1].index, 6), (count, count, 8)]
    captions = [proof.line_of(selection, row) for row in rows[:-1]] + [""]
    for tokenizer in tokenizers:
        ids = text.Parts(tokenizer, selection, CPU).ids(torch.tensor(rows))
        assert torch.equal(ids.long(), text.tokenize(tokenizer, captions))
        assert max(len(line) for line in tokenizer(captions).input_ids) <= text.TOKENS


def test_tokenizers_know_every_word(selection, tokenizers):
    line = "a panda and a red apple on a blue background"
    assert [len(tokenizer.tokenize(line)) for tokenizer in tokenizers] == [10, 10]
    ids = text.tokenize(tokenizers[1], text.sample_captions(selection))
    assert (ids != tokenizers[1].unk_token_id).all()


def test_learning_rate_warms_up_and_decays():
    rates = [steps.learning_rate(1.0, progress) for progress in (0.0, 0.02, 0.5, 1.0)]
    assert rates[0] < 0.01 and rates[1] == pytest.approx(1.0) and rates[3] == pytest.approx(0.01)
    assert 0.4 < rates[2] < 0.6


def test_budget_ends_by_iterations_and_at_the_hard_stop():
    budget = steps.Budget(minutes=100, iterations=10)
    assert budget.progress(5) == 0.5 and budget.progress(12) == 1
    assert steps.Budget(minutes=100, iterations=10, until=0.0).progress(0) == 1
    assert steps.Budget(minutes=1, elapsed=30).progress(0) == pytest.approx(0.5, abs=0.05)


def test_orthogonalised_matrix_has_singular_values_near_one():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(steps.orthogonalise(matrix))
    assert values.min() > 0.5 and values.max() < 1.5


def test_vectors_move_as_with_adamw():
    torch.manual_seed(0)
    layer, gradients = nn.LayerNorm(6), [torch.randn(2, 6) for _ in range(3)]
    reference = copy.deepcopy(layer)
    theirs = torch.optim.AdamW(reference.parameters(), 0.1, betas=(0.9, 0.99), weight_decay=0.0)
    mine = steps.Optimizer(layer, list(layer.parameters()), torch.float32)
    mine.rate.fill_(0.1)
    for pair in gradients:
        mine.step(list(pair))
        reference.weight.grad, reference.bias.grad = pair
        theirs.step()
    torch.testing.assert_close(layer.weight, reference.weight)
    torch.testing.assert_close(layer.bias, reference.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trainee_learns_and_its_average_follows(dtype):
    torch.manual_seed(0)
    trainee = steps.Trainee(nn.Linear(8, 8), dtype, decay=0.9)
    inputs = torch.randn(64, 8)

    def loss_of(worker):
        return (worker(inputs.to(dtype)).float() - inputs).square().mean()

    first = loss_of(trainee.worker).item()
    for iteration in range(60):
        trainee.iteration = iteration
        trainee.set_rate(steps.learning_rate(0.1, iteration / 60))
        trainee.step(loss_of)
    assert trainee.weights[0].dtype == torch.float32
    assert loss_of(trainee.worker) < 0.1 * first
    assert loss_of(trainee.average.to(dtype)) < 0.1 * first


def test_training_goes_on_from_a_checkpoint(tmp_path):
    results = []
    for parts in ((6,), (3, 6)):
        path = tmp_path / f"{len(parts)}.pt"
        for iterations in parts:
            torch.manual_seed(0)
            trainee = steps.Trainee(nn.Linear(4, 4), torch.bfloat16, decay=0.9)
            if path.exists():
                trainee.load(path)
            assert torch.equal(trainee.working[0], trainee.weights[0].bfloat16())
            steps.train(
                trainee,
                lambda worker: worker(torch.ones(1, 4).bfloat16()).float().square().mean(),
                steps.Budget(minutes=1, iterations=iterations),
                0.01,
                "test",
                path,
            )
        assert trainee.iteration == 6
        results.append(trainee)
    # The schedules differ, since each run is planned to end; the states must not be far apart.
    torch.testing.assert_close(results[0].weights[0], results[1].weights[0], atol=0.03, rtol=0)


def test_autoencoder_takes_a_training_step():
    torch.manual_seed(0)
    trainee = steps.Trainee(vae.build(), torch.float32, decay=0.9)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    trainee.set_rate(1e-3)
    torch.manual_seed(1)
    before = vae.loss_of(trainee.worker, images).item()
    trainee.step(lambda worker: vae.loss_of(worker, images))
    torch.manual_seed(1)
    assert vae.moments(trainee.worker, images)[0].shape == (2, 16, 4, 4)
    assert vae.loss_of(trainee.worker, images) < before


@pytest.fixture(scope="module")
def model(tokenizers) -> flow.FlowModel:
    """A small flow model whose every weight has an effect, but for the guidance embedding."""
    torch.manual_seed(0)
    model = flow.FlowModel(*tokenizers, single=1).eval().requires_grad_(False)
    for name, weight in model.transformer.named_parameters():
        if "guidance_embedder.linear_2" not in name:
            weight.add_(0.02 * torch.randn_like(weight))
    return model


@pytest.fixture
def batch(tokenizers):
    """Latents, times and tokens of two captions."""
    torch.manual_seed(2)
    captions = ["a red apple on a blue background", ""]
    ids = tuple(text.tokenize(tokenizer, captions) for tokenizer in tokenizers)
    return torch.randn(2, 16, 64), torch.tensor([0.3, 0.9]), ids


def test_velocity_is_the_transformer_s_own(model, batch):
    latents, times, ids = batch
    words, pooled = model.encode(*ids)
    places, scales = flow.positions(64, CPU), torch.tensor([1.0, 4.0])
    theirs = model.transformer(
        hidden_states=latents,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        timestep=times,
        guidance=scales,
        txt_ids=places[: text.TOKENS],
        img_ids=places[text.TOKENS :],
        return_dict=False,
    )[0]
    rotary = model.transformer.pos_embed(places)
    mine = flow.velocity(model.transformer, latents, times, scales, words, pooled, rotary)
    torch.testing.assert_close(mine, theirs)


def test_attention_written_out_is_the_libraries_own(model, batch):
    latents, times, ids = batch
    usual = copy.deepcopy(model)
    usual.transformer.set_attn_processor(FluxAttnProcessor())
    usual.text_encoder.set_attn_implementation("sdpa")
    rotary = model.transformer.pos_embed(flow.positions(64, CPU))
    words, pooled = model.encode(*ids)
    torch.testing.assert_close(words, usual.text_encoder_2(ids[1])[0])
    torch.testing.assert_close(pooled, usual.text_encoder(ids[0]).pooler_output)
    mine, theirs = (
        flow.velocity(each.transformer, latents, times, times, words, pooled, rotary)
        for each in (model, usual)
    )
    torch.testing.assert_close(mine, theirs)


def meta_pool() -> flow.Pool:
    """Pictures without values on the device of `capture`."""
    latents = torch.zeros(8, 64, 64, device=DEVICE)
    ids = torch.zeros(8, text.TOKENS, dtype=torch.int32, device=DEVICE)
    return flow.Pool(latents, latents, ids, ids, (ids[:1], ids[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["flow", "distil"])
def test_a_training_step_can_be_captured(stage, tokenizers, tmp_path, monkeypatch):
    captured = []

    def take_a_step(trainee, loss_of, *_, **__):
        trainee.set_rate(1e-3)
        trainee.step(loss_of)  # like the steps before a capture, which fill caches
        with capturing():
            trainee.step(loss_of)
        captured.append(stage)
        raise KeyboardInterrupt  # nothing can be measured without values

    monkeypatch.setattr(steps, "train", take_a_step)
    monkeypatch.setattr(flow, "HeldOutLoss", lambda *_: None)
    shared = {"dtype": torch.bfloat16, "batch": 4}
    budget = lambda elapsed: steps.Budget(1, 1, elapsed)  # noqa: E731
    with pytest.raises(KeyboardInterrupt), DEVICE:
        if stage == "flow":
            flow.train(meta_pool(), meta_pool(), tokenizers, tmp_path, budget, **shared)
        else:
            teacher = flow.FlowModel(*tokenizers, single=1)
            distil.train(teacher, meta_pool(), meta_pool(), tmp_path, budget, **shared)
    assert captured == [stage]


def test_what_cannot_be_captured_is_noticed():
    there = torch.zeros(3, device=DEVICE)
    for action in (
        lambda: there + torch.tensor(1.0, device=DEVICE),
        lambda: torch.zeros(3).to(DEVICE),
        lambda: there[torch.tensor([1])],
        lambda: there.nonzero(),
    ):
        with pytest.raises(Uncapturable), capturing():
            action()
    with capturing():
        there * 2 + torch.ones_like(there)


def test_guidance_has_no_effect_before_distillation(model, batch):
    latents, times, ids = batch
    rotary = model.transformer.pos_embed(flow.positions(64, CPU))
    one, six = (
        flow.velocity(
            model.transformer, latents, times, torch.full((2,), scale), *model.encode(*ids), rotary
        )
        for scale in (1.0, 6.0)
    )
    assert torch.equal(one, six)


def test_guided_velocity_is_plain_at_scale_one_and_outside_the_interval():
    torch.manual_seed(0)
    known, without, mixed = torch.randn(3, 4, 16, 64)
    times = torch.tensor([0.05, 0.5, 0.5, 0.97])
    scales = torch.tensor([4.0, 1.0, 4.0, 4.0])
    target = distil.guided(known, without, mixed, times, scales)
    for place in (0, 1, 3):
        assert torch.equal(target[place], known[place])
    assert (target[2] - known[2]).norm() > 0.5 * known[2].norm()
    moved = known[2] + 3 * (known[2] - without[2])
    spread, unscaled, plain = (
        (mixed[2] - 0.5 * velocity).std() for velocity in (target[2], moved, known[2])
    )
    assert plain < spread < unscaled


@pytest.mark.slow
def test_student_starts_as_its_teacher_and_learns_guidance(model, tokenizers, tmp_path):
    torch.manual_seed(3)
    latents = torch.randn(4, 64, 64)
    ids, ids_2 = (
        text.tokenize(tokenizer, ["a bear on a red background"] * 4) for tokenizer in tokenizers
    )
    empty = tuple(text.tokenize(tokenizer, [""]) for tokenizer in tokenizers)
    pool = flow.Pool(latents, torch.zeros_like(latents), ids, ids_2, empty)
    reports = []
    for iterations in (0, 8):
        report = distil.train(
            model,
            pool,
            pool,
            tmp_path / str(iterations),
            lambda elapsed, iterations=iterations: steps.Budget(1, iterations, elapsed),
            batch=4,
            rate=2e-3,
        )[1]
        reports.append(report)
    before, after = reports
    assert before["held_out_error_at_1"] < 1e-10
    assert after["held_out_error_at_6"] < before["held_out_error_at_6"]


def test_judge_finds_what_was_painted(icons):
    judge, painter = proof.Judge(icons, CPU, copies=8), data.Painter(icons, CPU)
    captions = torch.tensor([[0, 3, 0], [1, 3, 4], [2, 3, 0], [1, 2, 0], [2, 0, 7], [0, 1, 0]])
    torch.manual_seed(5)
    pictures = data.paint(painter, captions, 3)
    swapped = captions.clone()
    swapped[3, :2] = torch.tensor([2, 1])
    found = judge.find_all(pictures, swapped)
    assert (found == swapped[:, :2]).all(dim=1).tolist() == [True] * 3 + [False] + [True] * 2
    assert torch.equal(judge.find_all(pictures[2:], swapped[2:]), found[2:])
    assert proof.background_error(pictures, captions[:, 2]) < 12


def test_pipeline_folder_samples_at_several_sizes(model, tokenizers, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    autoencoder = vae.build().eval()
    autoencoder.register_to_config(shift_factor=0.1, scaling_factor=0.5)
    flow.export(flow.pipeline_of(model, autoencoder, *tokenizers), tmp_path / "pipeline")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".part"}]
    pipeline = diffusers.FluxPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    config = pipeline.transformer.config
    assert config.guidance_embeds and config.in_channels == 64 and pipeline.vae_scale_factor == 8
    for size in (64, 96):
        pictures = flow.sample(pipeline, ["a bear on a red background"], 2, size=size)
        assert pictures.shape == (1, 3, size, size) and pictures.isfinite().all()
    again = flow.sample(pipeline, ["a bear on a red background"], 2, size=96)
    assert torch.equal(pictures, again)
