"""Slow and plain references for `eigencache.tokens`, on NumPy arrays."""

import numpy as np


def slow_attention_received(query, key, scale):
    """Return `[B, L]` from `[B, heads, L, D]`, one number at a time."""
    batch, heads, length, _ = query.shape
    received = np.zeros((batch, length))
    for b in range(batch):
        for head in range(heads):
            for i in range(length):
                products = np.exp([scale * query[b, head, i] @ k for k in key[b, head]])
                received[b] += products / products.sum() / heads
    return received


def slow_toca(received, age, weight, gap, count):
    """Return the tokens with the highest scores, `[B, count]`, ties to the first."""
    picked = []
    for attention, ages in zip(received, age, strict=True):
        score = attention / np.sqrt((attention**2).sum()) + weight * ages / gap
        picked.append(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])
    return picked


def slow_k_means(points, clusters, iterations):
    """Return the labels `[N]` and the centres of Lloyd's algorithm from evenly spaced points."""
    count = len(points)
    centres = [points[int((i + 0.5) * count / clusters)] for i in range(clusters)]
    for iteration in range(iterations + 1):
        labels = [int(np.argmin([((p - c) ** 2).sum() for c in centres])) for p in points]
        if iteration == iterations:
            return np.array(labels), np.array(centres)
        for j in range(clusters):
            members = [p for p, label in zip(points, labels, strict=True) if label == j]
            if members:
                centres[j] = np.mean(members, axis=0)


def slow_clusca(forecast, fresh_of, points, rule):
    """Return the blended forecast `[L, C]` of one image, and the tokens that were recomputed."""
    labels, centres = slow_k_means(points, rule.clusters, rule.iterations)
    text = len(forecast) - len(points)
    picked = set()
    for j, centre in enumerate(centres):
        distance = ((points - centre) ** 2).sum(1)
        distance = np.round(1000 * distance / distance.mean())
        picked |= set(sorted(range(len(points)), key=lambda i: (labels[i] != j, distance[i]))[
            : rule.per_cluster
        ])  # fmt: skip
    blended = forecast.copy()
    for i, label in enumerate(labels):
        mates = [fresh_of[text + t] for t in picked if labels[t] == label]
        blended[text + i] += rule.weight * (np.mean(mates, axis=0) - forecast[text + i])
    for t in picked:
        blended[text + t] = fresh_of[text + t]
    return blended, {text + t for t in picked}
