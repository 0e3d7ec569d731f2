"""The metrics: their names, how to read them and what they need. One file computes each.

The names are those of columns and say exactly what is computed: a substitute for a known metric has
a name of its own. This module imports nothing heavy, so that tables and figures can import it. To
add a metric, add a line here and a file `_NAME.py` as `eigencache.metrics.scorers` describes it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

CLIP = "clip"


def pooled(decibels: Sequence[float]) -> float:
    """Return the PSNR of several frames together, from that of each: that of the mean square error.

    A mean of decibels would be infinite where one frame is exact, as the first of a video that
    continues a given image is. That of one frame stays as it is, to the last bit.
    """
    if len(decibels) == 1:
        return decibels[0]
    error = fmean(10 ** (-value / 10) for value in decibels)
    return -10 * math.log10(error) if error else math.inf


@dataclass(frozen=True)
class Metric:
    """How to read a metric.

    Attributes:
        label: the text on axes and in heads of tables, with the unit.
        higher: whether higher is better.
        paired: whether it compares an image with a reference image of the same prompt and noise;
            otherwise it depends on the image and its prompt only, or on a set of images.
        digits: decimals that tables show.
        whole: of a metric that has one value per set of images, not one per image: the distance of
            sets, a key of `eigencache.metrics.sets.DISTANCES`.
        package: the package whose code computes it.
        models: the models of data/models.tsv that have its weights; CLIP stands for `clip` of the
            configuration.
        over_frames: a video's score from the scores of its frames.
    """

    label: str
    higher: bool
    paired: bool
    digits: int
    whole: str = ""
    package: str = "torchmetrics"
    models: tuple[str, ...] = ()
    over_frames: Callable[[Sequence[float]], float] = fmean


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR (dB)", higher=True, paired=True, digits=2, over_frames=pooled),
    "ssim": Metric("SSIM", higher=True, paired=True, digits=4, package="scikit-image"),
    "lpips_alex": Metric(
        "LPIPS (alex)", higher=False, paired=True, digits=4, models=("LPIPS-alex",)
    ),
    "st_lpips_alex": Metric(
        "ST-LPIPS (alex)", higher=False, paired=True, digits=6,
        package="torch", models=("ST-LPIPS-alex",),
    ),
    "clip_score": Metric(
        "CLIP score", higher=True, paired=False, digits=2,
        package="open_clip_torch", models=(CLIP,),
    ),
    "image_reward": Metric(
        "ImageReward", higher=True, paired=False, digits=3,
        package="image-reward", models=("ImageReward", "bert-base-uncased"),
    ),
    "frechet_lite0": Metric(
        "Fréchet distance (EfficientNet-lite0)", higher=False, paired=True, digits=3,
        whole="frechet", package="timm", models=("EfficientNet-lite0",),
    ),
}  # fmt: skip
