"""Pack the training into one folder for a machine with a GPU and no network.

The folder has the program, the data, the pictures, a pipeline to go on from if one is given, wheels
of the packages that such a machine may lack beside torch and transformers, and ``go.sh``, which
runs it:

    OUT=results bash go.sh

Results come into ``$OUT`` as a few tar files while the training goes on. ``FLOW`` and ``DISTIL``
are the minutes of these stages, ``UNTIL`` is the hard stop in seconds, and ``VAE`` the minutes of
the autoencoder, which such a pipeline makes needless. Further options go to ``training.run``.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from training import data, run

LEFT_OUT = ("bundle.py", "card.py", "clip.py", "kernels.py", "small.py", "__pycache__")
# What diffusers needs of its own: its other needs come with transformers.
PACKAGES = ("diffusers", "importlib_metadata", "zipp")

GO = """\
#!/usr/bin/env bash
# Train emoji-flux and leave the results in $OUT; written by training.bundle.
set -euo pipefail
cd "$(dirname "$0")"
: "${OUT:?the folder for the results}"
mkdir -p "$OUT"
site=$(mktemp -d) work=${WORK:-$(mktemp -d)}
if compgen -G 'whl/*.whl' >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" \\
        whl/*.whl
fi
export PYTHONPATH=$site:. PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1
start=()
[ -d start ] && start=(--start start)
status=0
python3 -m training.run --data emoji.tsv --assets assets --prompts prompts.txt \\
    --apart apart/*.txt "${start[@]}" --out "$work" --deliver "$OUT" \\
    --vae-minutes "${VAE:-1.8}" --flow-minutes "${FLOW:-6.5}" --distil-minutes "${DISTIL:-1.5}" \\
    --until "${UNTIL:-700}" "$@" >"$OUT/log.txt" 2>&1 || status=$?
# Tracebacks are in log.txt; what is said is enough here.
grep -v '^  File\\|^    ' "$OUT/log.txt" | cut -c1-260
exit $status
"""


def download_wheels(out: Path, packages: tuple[str, ...] = PACKAGES) -> None:
    """Wheels of packages, in the versions that are installed here."""
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in packages]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", str(out), *pinned], check=True)


def build(
    selection_path: Path,
    assets: Path,
    prompts: Path,
    apart: list[Path],
    start: Path | None,
    out: Path,
    packages: tuple[str, ...] = PACKAGES,
) -> None:
    """Write the folder; what was in it before goes."""
    pictures = data.picture_files(data.read_selection(selection_path), assets)
    if start:
        run.check_start(start)
    if out.exists() and not (out / "go.sh").exists():
        raise FileExistsError(f"{out} is there and is no bundle: give another --out, or remove it")
    shutil.rmtree(out, ignore_errors=True)
    program = Path(__file__).parent
    shutil.copytree(program, out / "training", ignore=shutil.ignore_patterns(*LEFT_OUT))
    (out / "assets").mkdir()
    for picture in pictures:
        shutil.copy(picture, out / "assets")
    shutil.copy(selection_path, out / "emoji.tsv")
    shutil.copy(prompts, out / "prompts.txt")
    (out / "apart").mkdir()
    for path in apart:
        shutil.copy(path, out / "apart")
    if start:
        shutil.copytree(start, out / "start")
    (out / "whl").mkdir()
    if packages:
        download_wheels(out / "whl", packages)
    (out / "go.sh").write_text(GO, encoding="utf-8")


def main() -> None:
    """Pack everything that the training needs into one folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    home = Path(__file__).parents[2]
    parser.add_argument("--data", type=Path, default=home / "data/emoji/emoji.tsv")
    parser.add_argument("--assets", type=Path, required=True, help="folder of <hexcode>.webp")
    card, *apart = (
        home / f"data/prompts/emoji-{kind}.txt" for kind in ("card", "evaluation", "calibration")
    )
    parser.add_argument("--prompts", type=Path, default=card, help="captions of the sheet")
    parser.add_argument("--apart", type=Path, nargs="+", default=apart, help="not to judge")
    parser.add_argument("--start", type=Path, help="folder to go on from, such as data/emoji-flux")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    build(
        arguments.data,
        arguments.assets,
        arguments.prompts,
        arguments.apart,
        arguments.start,
        arguments.out,
    )
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
