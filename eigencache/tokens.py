"""Token-wise rules: which MLP tokens a skipped step recomputes, and how the rest follow them.

A rule is a small immutable object, saved with a plan (`eigencache.plan.Plan.refresh`). `Rule` says
what the runtime asks it between two full steps: to `observe` a full step that a skipped one
follows, then, at a skipped step and for each MLP, to `pick` tokens and to `blend` them in.

What blending adds to a forecast is also added to the forecasts of the following skipped steps, and
forgotten at the next full step. Rules draw no random numbers and look at no other image of a batch.
They work on tensors without importing torch, so that planning can name them without the import; to
a type checker their tensors are `Any`.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from eigencache._checks import check_range, check_whole


@dataclass(frozen=True)
class Place:
    """Where an MLP is.

    Attributes:
        text: whether its tokens are those of the text; otherwise they are those of the image or,
            in a fused block, both.
        fused: whether its block computes attention and MLP in parallel, over text and image.
        depth: of its block among blocks of its kind, from 0 (the first) to 1 (the last).
    """

    text: bool
    fused: bool
    depth: float


@dataclass(frozen=True)
class Moment:
    """When a token is picked.

    Attributes:
        progress: the step divided by the number of steps.
        gap: the number of steps from the last full one to the next.
    """

    progress: float
    gap: int


class Rule(Protocol):
    """What every rule offers.

    Attributes:
        observes: what it looks at when a step is full: "attention", the attention that each token
            of a block receives, once for each block; or "hidden", the image tokens that leave the
            last block, once for all blocks.
        text: whether it recomputes text tokens too.
    """

    observes: ClassVar[str]
    text: ClassVar[bool]

    def observe(self, source: Any) -> Any:
        """Return what to keep of a full step until the next.

        Args:
            source: what the rule observes: attention, float32 `[B, text + image tokens]`; or hidden
                states of image tokens, `[B, N, C]`.
        """

    def pick(self, seen: Any, age: Any, place: Place, moment: Moment) -> Any:
        """Return the tokens of an MLP to recompute, int64 `[B, k]`.

        Args:
            seen: what `observe` returned at the last full step.
            age: int64 `[B, L]`, skipped steps since each token was recomputed.
            place: of the MLP.
            moment: of the step.
        """

    def blend(self, forecast: Any, fresh: Any, tokens: Any, seen: Any) -> Any:
        """Return the forecast with the recomputed tokens in it, `[B, L, C]`.

        Args:
            forecast: float32 or better `[B, L, C]`, of the MLP's output.
            fresh: `[B, k, C]`, what the MLP returns for `tokens`.
            tokens: int64 `[B, k]`, from `pick`.
            seen: what `observe` returned at the last full step.
        """


@dataclass(frozen=True)
class ToCa:
    """Recompute the tokens that are attended to most and were recomputed longest ago.

    ToCa (arXiv 2410.05317) with the settings of its release for FLUX. The score of a token is the
    attention that it received at the last full step, scaled so that the squares of an MLP's tokens
    sum to one, plus `staleness_weight` times its age over the gap. Of an MLP's tokens, `ratio`
    times three factors are recomputed, and at least one: `1 + layer_weight (1 - 2 depth)`,
    `1 + step_weight (1 - 2 progress)`, and `1 - stream_weight`, or plus in a fused block. A ratio
    of zero recomputes none.

    The release differs: it divides a layer's number by 27 in every model, so that the deep layers
    of FLUX's 38 get far less than the ratio; it rounds down to no token at all; and it measures
    age in fixed intervals, which here is the gap. The bonus for an even spread over the image,
    which the release turns off, is left out.

    Attributes:
        ratio: the share of an MLP's tokens that is recomputed, 0 to 1.
        staleness_weight: of a token's age in its score, at least 0.
        layer_weight: how much more the first blocks recompute than the last, 0 to 1.
        step_weight: how much more the first steps recompute than the last, 0 to 1.
        stream_weight: how much more fused blocks recompute than others, 0 to 1.

    Raises:
        ValueError: an option is out of range.
    """

    ratio: float = 0.1
    staleness_weight: float = 0.25
    layer_weight: float = 0.5
    step_weight: float = 0.0
    stream_weight: float = 0.6
    observes: ClassVar[str] = "attention"
    text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("ratio", "layer_weight", "step_weight", "stream_weight"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("staleness_weight", self.staleness_weight, 0)

    def observe(self, source: Any) -> Any:
        return source

    def pick(self, seen: Any, age: Any, place: Place, moment: Moment) -> Any:
        tokens = age.shape[1]
        received = seen[:, :tokens] if place.text else seen[:, -tokens:]
        score = received / received.norm(dim=1, keepdim=True)
        score = score + self.staleness_weight / moment.gap * age
        count = self._count(tokens, place, moment)
        return score.argsort(dim=1, descending=True, stable=True)[:, :count]

    def blend(self, forecast: Any, fresh: Any, tokens: Any, seen: Any) -> Any:
        return forecast.scatter(1, _along(tokens, fresh), fresh)

    def _count(self, tokens: int, place: Place, moment: Moment) -> int:
        """Return how many of an MLP's tokens are recomputed."""
        by_layer = 1 + self.layer_weight * (1 - 2 * place.depth)
        by_step = 1 + self.step_weight * (1 - 2 * moment.progress)
        by_stream = 1 + self.stream_weight * (1 if place.fused else -1)
        count = int(self.ratio * by_layer * by_step * by_stream * tokens)
        return min(max(count, 1), tokens) if self.ratio else 0


@dataclass(frozen=True)
class ClusCa:
    """Recompute one or a few tokens of each cluster, and move the cluster slightly towards them.

    ClusCa (arXiv 2509.10312) with its published settings. At a full step, k-means over the last
    block's image tokens (Euclidean, from evenly spaced tokens) makes `clusters` clusters, for all
    blocks. At a skipped step the `per_cluster` members of each that are nearest to its centre (the
    first of them, if equally near to a thousandth of the mean distance) go through the MLP, and
    every other image token moves by `F <- (1 - weight) F + weight m`, with m the mean of the
    recomputed tokens of its cluster. Text tokens are forecast like all else.

    The releases differ: they take a random member; they start k-means from random tokens or the
    last centres, with L1 distances; they recompute text tokens too; they write recomputed tokens
    into the constant term of the expansion, to which its higher terms are then added once more;
    and where an empty cluster recomputes a token of another, they use a sum in place of the mean.

    Attributes:
        clusters: how many, at least 1.
        per_cluster: tokens of each that are recomputed, at least 1.
        weight: how far the other tokens move towards them, 0 to 1.
        iterations: of k-means, at least 1.

    Raises:
        ValueError: an option is out of range; or, in `observe`, there are fewer tokens than
            clusters.
    """

    clusters: int = 16
    per_cluster: int = 1
    weight: float = 0.005
    iterations: int = 10
    observes: ClassVar[str] = "hidden"
    text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("clusters", "per_cluster", "iterations"):
            check_whole(name, getattr(self, name), low=1)
        check_range("weight", self.weight, 0, 1)

    def observe(self, source: Any) -> Any:
        """Return the cluster of each token, int64 `[B, N]`, and tokens to recompute `[B, k]`."""
        if self.clusters > source.shape[1]:
            raise ValueError(
                f"ClusCa cannot make {self.clusters} clusters of {source.shape[1]} image tokens: "
                "set `clusters` lower"
            )
        labels, distance = k_means(source, self.clusters, self.iterations)
        # Two members are equally far from their mean: rounding must not choose between them.
        rank = (1000 * distance / distance.mean(1, keepdim=True).clamp(min=1e-30)).round()
        outside = 1 - _one_hot(labels, distance)
        order = (rank + outside * (rank.amax(1, keepdim=True) + 1)).argsort(dim=1, stable=True)
        return labels, order[:, : self.per_cluster].flatten(1)

    def pick(self, seen: Any, age: Any, place: Place, moment: Moment) -> Any:
        labels, tokens = seen
        return tokens + (age.shape[1] - labels.shape[1])  # in a fused block, the image comes last

    def blend(self, forecast: Any, fresh: Any, tokens: Any, seen: Any) -> Any:
        labels, picked = seen
        means = self._means(fresh, picked, labels)
        text = forecast.shape[1] - labels.shape[1]
        moved = forecast.clone()
        moved[:, text:].lerp_(means.gather(1, _along(labels, means)), self.weight)
        return moved.scatter_(1, _along(tokens, fresh), fresh)

    def _means(self, fresh: Any, picked: Any, labels: Any) -> Any:
        """Return the mean of the recomputed tokens of each cluster, `[B, clusters, C]`.

        A token that replaces a missing member of another cluster counts once, for its own cluster.
        An empty cluster has no mean, and no token needs it.
        """
        times = (picked[:, :, None] == picked[:, None, :]).sum(-1, keepdim=True)
        empty = fresh.new_zeros(*picked.shape, self.clusters)
        members = _one_hot(labels.gather(1, picked), empty) / times
        return members.transpose(1, 2) @ fresh / members.sum(1)[..., None]


RULES = {rule.__name__: rule for rule in (ToCa, ClusCa)}


def described(rule: Rule | None) -> dict | None:
    """Return a rule as a dictionary of its name and options, from which `rule_of` makes it."""
    if rule is None:
        return None
    return {"rule": type(rule).__name__, **asdict(rule)}  # type: ignore[call-overload]


def rule_of(description: dict | None) -> Rule | None:
    """Return the rule that `described` described.

    Raises:
        KeyError: there is no such rule.
        TypeError: it has no such option.
        ValueError: an option is out of range.
    """
    if description is None:
        return None
    options = dict(description)
    return RULES[options.pop("rule")](**options)


def k_means(points: Any, clusters: int, iterations: int) -> tuple[Any, Any]:
    """Cluster points by Lloyd's algorithm, from evenly spaced ones; an emptied cluster stays put.

    Args:
        points: `[B, N, C]`; each of the `B` sets is clustered alone.
        clusters: how many, at most `N`.
        iterations: how often centres are moved, at most.

    Returns:
        The cluster of each point, int64 `[B, N]`, and the squared distance of each point to each
        centre, float32 `[B, N, clusters]`.
    """
    points = points.float()
    points = points - points.mean(1, keepdim=True)  # distances lose fewer digits
    count = points.shape[1]
    centres = points[:, [(2 * i + 1) * count // (2 * clusters) for i in range(clusters)]]
    for iteration in range(iterations + 1):
        distance = points.square().sum(-1, keepdim=True) + centres.square().sum(-1)[:, None]
        distance = (distance - 2 * points @ centres.transpose(1, 2)).clamp(min=0)
        labels = distance.argmin(-1)
        if iteration == iterations:
            break
        members = _one_hot(labels, distance)
        sizes = members.sum(1)[..., None]
        means = members.transpose(1, 2) @ points / sizes.clamp(min=1)
        centres = means.where(sizes > 0, centres)
    return labels, distance


def attention_received(query: Any, key: Any, scale: float) -> Any:
    """Return how much attention each token receives, the mean over heads: float32 `[B, L]`.

    Args:
        query, key: `[B, heads, L, D]`, as they enter the attention; one head is held at a time.
        scale: of their products.
    """
    heads = query.shape[1]
    received: Any = 0
    for head in range(heads):
        products = query[:, head] @ key[:, head].transpose(1, 2) * scale
        received = received + products.float().softmax(-1).sum(1) / heads
    return received


def _one_hot(labels: Any, like: Any) -> Any:
    """Return a tensor like `like` `[B, N, K]` that is one at `labels` `[B, N]`, else zero."""
    return like.new_zeros(like.shape).scatter_(-1, labels[..., None], 1)


def _along(tokens: Any, values: Any) -> Any:
    """Return the index `[B, k, C]` of `tokens` `[B, k]` for gather and scatter of `values`."""
    return tokens[..., None].expand(-1, -1, values.shape[-1])
