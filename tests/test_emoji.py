"""The emoji world and its two shipped models: captions, rendering, training steps, loading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from eigencache.emoji import data, flow, proof, training, vae

ROOT = Path(__file__).parents[1]
FLUX, CLIP = ROOT / "data" / "emoji-flux", ROOT / "data" / "emoji-clip"


@pytest.fixture(scope="module")
def selection() -> list[data.Emoji]:
    """The pinned emoji."""
    return data.read_selection(ROOT / "data" / "emoji" / "emoji.tsv")


@pytest.fixture
def icon() -> Image.Image:
    """A drawn RGBA icon: a red disc with a black bar, on nothing."""
    picture = Image.new("RGBA", (data.ICON, data.ICON))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, 120, 120), fill=(220, 30, 30, 255))
    draw.rectangle((20, 60, 64, 70), fill=(0, 0, 0, 255))
    return picture


def by_caption(selection: list[data.Emoji]) -> dict[str, tuple[int, int]]:
    """Every caption with its (emoji, colour) pair."""
    return {
        data.caption(emoji, colour): (emoji.index, place)
        for emoji in selection
        for place, colour in enumerate(data.COLOURS)
    }


def test_captions_are_unique_and_use_articles(selection):
    captions = flow.all_captions(selection)
    assert len(set(captions)) == len(selection) * len(data.COLOURS)
    assert "a red apple on a blue background" in captions
    assert "an eggplant on a white background" in captions
    assert "cherries on a pink background" in captions


def test_one_background_per_emoji_is_held_out(selection):
    held_out, trained = data.pairs(selection, True), data.pairs(selection, False)
    assert [emoji for emoji, _ in held_out] == list(range(len(selection)))
    assert not set(held_out) & set(trained)
    assert len(held_out) + len(trained) == len(selection) * len(data.COLOURS)


@pytest.mark.parametrize(
    ("name", "count", "held_out"), [("calibration", 32, False), ("evaluation", 64, True)]
)
def test_prompt_files_respect_the_split(selection, name, count, held_out):
    known = by_caption(selection)
    lines = (ROOT / "data" / "prompts" / f"emoji-{name}.txt").read_text().splitlines()
    assert len(set(lines)) == len(lines) == count
    assert all(data.is_held_out(*known[line]) == held_out for line in lines)


def test_rendering_is_set_by_the_seed(icon):
    first, again, other = (
        np.asarray(data.render(icon, "blue", np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).any()
    assert first[0, 0, 2] > first[0, 0, 0]  # the corner shows the background


def test_pool_visits_every_pair_equally(icon):
    pictures, pairs = data.render_pool([icon, icon], [(0, 1), (1, 2)], 6, seed=0)
    assert pictures.shape == (6, 64, 64, 3)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 1)] * 3 + [(1, 2)] * 3


def test_tokenizers_give_every_word_a_token(selection):
    captions = flow.all_captions(selection)
    tokenizer, tokenizer_2 = flow.build_clip_tokenizer(captions), flow.build_t5_tokenizer(captions)
    line = "a red apple on a blue background"
    assert len(tokenizer.tokenize(line)) == len(tokenizer_2.tokenize(line)) == 7
    ids, ids_2 = flow.tokenize(tokenizer, captions), flow.tokenize(tokenizer_2, captions)
    assert ids.shape == ids_2.shape == (len(captions), flow.TOKENS)
    assert (ids_2 != tokenizer_2.unk_token_id).all()
    assert (ids == tokenizer.eos_token_id).any(dim=1).all()  # nothing was cut off


def test_learning_rate_warms_up_and_decays():
    rates = [training.learning_rate(1.0, progress) for progress in (0.0, 0.02, 0.5, 1.0)]
    assert rates[0] < 0.01 and rates[1] == pytest.approx(1.0) and rates[3] == pytest.approx(0.01)
    assert 0.4 < rates[2] < 0.6


def test_autoencoder_takes_a_training_step():
    torch.manual_seed(0)
    model = vae.build()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    optimizer = training.MuonAndAdamW(model, 1e-3)
    before = vae.loss_of(model, images, 5e-4)
    before.backward()
    optimizer.step()
    assert model.encode(images).latent_dist.mean.shape == (2, 16, 8, 8)
    assert vae.loss_of(model, images, 5e-4) < before


def test_orthogonalised_matrix_has_singular_values_near_one():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(training.orthogonalise(matrix))
    assert values.min() > 0.5 and values.max() < 1.5


def test_flow_model_resumes_where_it_stopped(selection, tmp_path):
    torch.manual_seed(0)
    captions = flow.all_captions(selection)[:16]
    tokenizers = flow.build_clip_tokenizer(captions), flow.build_t5_tokenizer(captions)
    tables = tuple(flow.tokenize(tokenizer, captions) for tokenizer in tokenizers)
    latents = torch.randn(16, 16, 64)
    pool = flow.Pool(latents, torch.zeros_like(latents), torch.arange(16))
    run = flow.Run(flow.FlowModel(*tokenizers), rate=1e-3)
    run.step(pool, tables, 4, torch.Generator().manual_seed(1))
    run.save(tmp_path / "checkpoint.pt")
    again = flow.Run(flow.FlowModel(*tokenizers), rate=1e-3)
    again.load(tmp_path / "checkpoint.pt")
    losses = [one.step(pool, tables, 4, torch.Generator().manual_seed(2)) for one in (run, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_nearest_rendering_names_the_emoji():
    bank = torch.randn(5, 3, 10, generator=torch.Generator().manual_seed(0)).half()
    assert proof.nearest(bank[3, 1:2].float() + 0.01, bank).tolist() == [3]


@pytest.fixture(scope="module")
def pipeline():
    """The shipped emoji-flux."""
    diffusers = pytest.importorskip("diffusers")
    if not (FLUX / "model_index.json").exists():
        pytest.skip("data/emoji-flux is not there")
    return diffusers.FluxPipeline.from_pretrained(FLUX, dtype=torch.float32)


def test_shipped_pipeline_is_small_and_has_the_form_of_flux(pipeline):
    config = pipeline.transformer.config
    assert config.in_channels == 64 and not config.guidance_embeds
    assert config.num_layers > 0 and config.num_single_layers > 0
    assert pipeline.scheduler.config.use_dynamic_shifting
    assert sum(path.stat().st_size for path in FLUX.rglob("*") if path.is_file()) < 25e6
    assert not [path for path in FLUX.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt"}]


def test_training_can_start_from_the_shipped_weights(pipeline, selection):
    captions = flow.all_captions(selection)
    trained = [captions[8 * emoji + colour] for emoji, colour in data.pairs(selection, False)]
    run = flow.Run(
        flow.FlowModel(flow.build_clip_tokenizer(trained), flow.build_t5_tokenizer(trained)), 1e-3
    )
    run.start_from(FLUX)
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        shipped = getattr(pipeline, part).state_dict()
        for model in (run.model, run.average):
            mine = getattr(model, part).state_dict()
            assert all(torch.equal(mine[name], shipped[name]) for name in shipped)


def test_shipped_text_encoders_tell_captions_apart(pipeline):
    lines = ["a red apple on a blue background", "a green apple on a blue background"]
    words, pooled, _ = pipeline.encode_prompt(lines, None, max_sequence_length=flow.TOKENS)
    assert words.shape == (2, flow.TOKENS, 128) and pooled.shape == (2, 128)
    for vectors in (words.flatten(1), pooled):
        difference = (vectors[0] - vectors[1]).norm()
        assert difference > 0.05 * vectors[0].norm()


def test_shipped_clip_ranks_the_right_caption_first(pipeline, selection):
    open_clip = pytest.importorskip("open_clip")
    if not (CLIP / "open_clip_config.json").exists():
        pytest.skip("data/emoji-clip is not there")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CLIP}")
    model.eval()
    lines = (ROOT / "data" / "prompts" / "emoji-evaluation.txt").read_text().splitlines()[:8]
    pictures = flow.sample(pipeline, lines, steps=12, seed=0)
    images = [Image.fromarray(levels) for levels in data.to_levels(pictures)]
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(i) for i in images]), True)
        text = model.encode_text(tokenizer(lines), True)
    assert ((image @ text.T).argmax(dim=1) == torch.arange(8)).sum() >= 7
