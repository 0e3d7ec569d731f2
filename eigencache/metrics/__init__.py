"""The metrics: what each is called, how to read it and what it needs; a file each computes it.

Names are those of columns, and say exactly what is computed: a substitute for a known metric has a
name of its own. This module imports nothing heavy, so tables and figures can ask it. To add a
metric, add a line here and a file `_NAME.py` as `eigencache.metrics.scorers` describes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CLIP = "clip"


@dataclass(frozen=True)
class Metric:
    """How to read a metric.

    Attributes:
        label: what axes and heads of tables say, with the unit.
        higher: whether higher is better.
        paired: whether it compares an image with a reference image of the same prompt and noise;
            otherwise it is of the image and its prompt alone, or of a set of images.
        digits: decimals that tables show.
        whole: whether it is of a whole set of images, and not of each.
        package: whose code computes it, as package registries call it.
        models: what has its weights, names of data/models.tsv; CLIP is the configuration's `clip`.
    """

    label: str
    higher: bool
    paired: bool
    digits: int
    whole: bool = False
    package: str = "torchmetrics"
    models: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR (dB)", higher=True, paired=True, digits=2),
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
        "Fréchet distance (EfficientNet-lite0)", higher=False, paired=True, digits=3, whole=True,
        package="timm", models=("EfficientNet-lite0",),
    ),
}  # fmt: skip
