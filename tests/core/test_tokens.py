"""Token-wise rules, on random numbers, against slow and plain NumPy; and what they refuse."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from slow_tokens import slow_attention_received, slow_clusca, slow_k_means, slow_toca

from eigencache.tokens import (
    ClusCa,
    Moment,
    Place,
    ToCa,
    attention_received,
    described,
    k_means,
    rule_of,
)

IMAGE, TEXT, FUSED = Place(False, False, 0.5), Place(True, False, 0.5), Place(False, True, 0.5)
NOW = Moment(0.5, 4)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- Attention


def test_attention_received_is_the_sum_over_queries_and_the_mean_over_heads():
    query, key = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1)
    expected = slow_attention_received(query.double().numpy(), key.double().numpy(), 0.5)
    assert attention_received(query, key, 0.5).numpy() == pytest.approx(expected, rel=1e-5)
    assert attention_received(query, key, 0.5).sum(1).tolist() == pytest.approx([5, 5])


def test_attention_received_is_summed_in_single_precision():
    query, key = random(1, 2, 64, 4).bfloat16(), random(1, 2, 64, 4, seed=1).bfloat16()
    received = attention_received(query, key, 0.5)
    assert received.dtype == torch.float32
    assert float(received.sum()) == pytest.approx(64, rel=1e-3)


# ---- ToCa


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.25, 0.5, 1.0, 3.0])
def test_toca_picks_by_attention_and_age(weight):
    received = random(8, 12).abs() + 0.1
    age = torch.randint(0, 4, (8, 12), generator=torch.Generator().manual_seed(2))
    rule = ToCa(0.25, weight, layer_weight=0, stream_weight=0)
    picked = rule.pick(rule.observe(received), age, IMAGE, NOW)
    slow = slow_toca(received.double().numpy(), age.numpy(), weight, NOW.gap, 3)
    assert picked.tolist() == slow


@pytest.mark.parametrize(("place", "part"), [(TEXT, slice(0, 4)), (IMAGE, slice(4, None))])
def test_toca_scores_text_first_and_image_after_it(place, part):
    received = random(2, 10).abs() + 0.1
    age = torch.zeros_like(received[:, part], dtype=torch.int64)
    rule = ToCa(0.5, layer_weight=0, stream_weight=0)
    picked = rule.pick(received, age, place, NOW)
    slow = slow_toca(received[:, part].double().numpy(), age.numpy(), 0, 1, age.shape[1] // 2)
    assert picked.tolist() == slow


@pytest.mark.parametrize(
    ("place", "moment", "share"),
    [
        (Place(False, False, 0.0), Moment(0.0, 4), 0.1 * 1.5 * 1.3 * 0.4),
        (Place(False, False, 1.0), Moment(0.0, 4), 0.1 * 0.5 * 1.3 * 0.4),
        (Place(True, False, 0.5), Moment(0.5, 4), 0.1 * 0.4),
        (Place(False, True, 0.5), Moment(0.5, 4), 0.1 * 1.6),
        (Place(False, True, 0.25), Moment(0.75, 4), 0.1 * 1.25 * 0.85 * 1.6),
    ],
)
def test_tocas_share_depends_on_layer_step_and_stream(place, moment, share):
    rule, tokens = ToCa(step_weight=0.3), torch.ones(1, 1000)
    picked = rule.pick(tokens, tokens.long(), place, moment)
    assert picked.shape[1] == int(share * 1000 + 1e-9)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.001, 1), (1.0, 7)])
def test_toca_recomputes_at_least_one_token_and_at_most_all(ratio, count):
    tokens = torch.ones(2, 7)
    assert ToCa(ratio).pick(tokens, tokens.long(), FUSED, NOW).shape == (2, count)


def test_toca_replaces_what_was_recomputed_and_nothing_else():
    forecast, fresh, tokens = (
        random(2, 5, 3),
        random(2, 2, 3, seed=1),
        torch.tensor([[4, 0], [1, 2]]),
    )
    blended = ToCa().blend(forecast, fresh, tokens, None)
    expected = forecast.clone()
    expected[0, 4], expected[0, 0] = fresh[0]
    expected[1, 1], expected[1, 2] = fresh[1]
    assert torch.equal(blended, expected)


# ---- ClusCa


@pytest.mark.parametrize("clusters", [1, 3, 16, 24])
@pytest.mark.parametrize("iterations", [1, 10])
def test_k_means_is_lloyds(clusters, iterations):
    points = random(2, 24, 5) + 100  # far from zero, where squares lose digits
    labels, distance = k_means(points, clusters, iterations)
    for b in range(2):
        expected, centres = slow_k_means(points[b].double().numpy(), clusters, iterations)
        assert labels[b].tolist() == expected.tolist()
        exact = ((points[b].double().numpy()[:, None] - centres) ** 2).sum(-1)
        assert distance[b].numpy() == pytest.approx(exact, rel=1e-3, abs=1e-4)


def test_an_emptied_cluster_stays_where_it_was():
    """Two of the first centres are the same point; at the mean, the third would win a point."""
    points = np.array([-4.0] * 4 + [8.0] * 4 + [0.0])[:, None]
    labels, _ = k_means(torch.tensor(points)[None], 3, 5)
    assert labels.tolist() == [[0] * 4 + [1] * 4 + [0]]
    assert labels[0].tolist() == slow_k_means(points, 3, 5)[0].tolist()


@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize("per_cluster", [1, 2, 5])
@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_clusca_moves_each_cluster_towards_the_mean_of_its_recomputed_tokens(
    text, per_cluster, weight
):
    rule = ClusCa(4, per_cluster, weight)
    points, forecast = random(2, 20, 6), random(2, text + 20, 3, seed=1)
    values = random(2, text + 20, 3, seed=2)
    seen = rule.observe(points)
    tokens = rule.pick(seen, torch.zeros(2, text + 20, dtype=torch.int64), FUSED, NOW)
    fresh = values.gather(1, tokens[..., None].expand(-1, -1, 3))
    blended = rule.blend(forecast, fresh, tokens, seen)
    for b in range(2):
        expected, picked = slow_clusca(
            forecast[b].double().numpy(),
            values[b].double().numpy(),
            points[b].double().numpy(),
            rule,
        )
        assert set(tokens[b].tolist()) == picked
        assert blended[b].numpy() == pytest.approx(expected, abs=1e-5)


def test_empty_clusters_add_nothing():
    """Two distinct points and four clusters: two stay empty, and share tokens with the others."""
    points = torch.tensor([[[0.0], [0.0], [0.0], [5.0]]])
    rule = ClusCa(4, 1, 0.5)
    seen = rule.observe(points)
    labels, tokens = seen
    assert labels.tolist() == [[0, 0, 0, 3]]
    fresh = 10 + tokens[..., None].float()
    blended = rule.blend(torch.zeros(1, 4, 1), fresh, tokens, seen)
    assert blended.isfinite().all()
    recomputed = set(tokens[0].tolist())
    mean = np.mean([10 + t for t in recomputed if t != 3])
    for token in range(4):
        moved = 0.5 * (13 if token == 3 else mean)
        assert float(blended[0, token]) == pytest.approx(
            10 + token if token in recomputed else moved
        )


def test_it_is_the_mean_and_not_the_sum():
    points = torch.zeros(1, 6, 1)
    rule = ClusCa(1, 3, 1.0)
    seen = rule.observe(points)
    fresh = torch.tensor([[[1.0], [2.0], [6.0]]])
    assert rule.blend(torch.zeros(1, 6, 1), fresh, seen[1], seen)[0, 5].item() == 3


def test_clusters_of_one_image_do_not_depend_on_the_others():
    points = random(3, 20, 6)
    rule = ClusCa(4, 2)
    together = rule.observe(points)
    for b in range(3):
        alone = rule.observe(points[b : b + 1])
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, together, strict=True))


def test_more_clusters_than_tokens_are_refused():
    with pytest.raises(ValueError, match="cannot make 16 clusters of 9 image tokens: set `clus"):
        ClusCa().observe(random(1, 9, 2))


# ---- Options


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (
            ToCa,
            {"ratio": 1.5},
            "ratio must be .* at most 1, got 1.5",
        ),
        (ToCa, {"ratio": -0.1}, "ratio"),
        (ToCa, {"ratio": float("nan")}, "ratio"),
        (ToCa, {"ratio": True}, "ratio"),
        (
            ToCa,
            {"staleness_weight": -1},
            "staleness_weight must be .* at least 0, got -1",
        ),
        (ToCa, {"layer_weight": 2}, "layer_weight"),
        (ToCa, {"step_weight": 2}, "step_weight"),
        (ToCa, {"stream_weight": 2}, "stream_weight"),
        (ClusCa, {"clusters": 0}, "clusters must be a whole number of at least 1, got 0"),
        (ClusCa, {"clusters": 2.0}, "clusters"),
        (ClusCa, {"per_cluster": 0}, "per_cluster"),
        (ClusCa, {"iterations": 0}, "iterations"),
        (
            ClusCa,
            {"weight": 1.1},
            "weight must be .* at most 1, got 1.1",
        ),
    ],
)
def test_options_out_of_range_are_refused_by_name(rule, options, message):
    with pytest.raises(ValueError, match=message):
        rule(**options)


@pytest.mark.parametrize("rule", [None, ToCa(), ToCa(0.5, 0.0), ClusCa(), ClusCa(4, 2, 0.1, 3)])
def test_a_described_rule_is_made_again(rule):
    assert rule_of(described(rule)) == rule


def test_rules_do_not_import_torch():
    code = "import sys, eigencache.tokens; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
