"""Images as files, and videos as folders of frames."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eigencache._files import replacing, sha256


def frames_of(path: str | os.PathLike) -> list[Path]:
    """Return the files of an image's or a video's frames, in order; of an image, itself alone.

    Args:
        path: of the image, or of the folder of frames.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(path)
    found = sorted(path.glob("*.png")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{path}: neither an image nor a folder of frames")
    return found


def write_frames(frames: Sequence[Image.Image], stem: Path) -> Path:
    """Write an image as STEM.png, or a video as STEM/FRAME.png, and return its path."""
    if len(frames) == 1:
        path = stem.with_name(f"{stem.name}.png")
        with replacing(path) as part:
            frames[0].save(part, format="PNG")
        return path
    shutil.rmtree(stem, ignore_errors=True)  # an earlier video may have had more frames
    for index, frame in enumerate(frames):
        with replacing(stem / f"{index:05d}.png") as part:
            frame.save(part, format="PNG")
    return stem


def hash_of_frames(path: str | os.PathLike) -> str:
    """Return the SHA-256 of an image's file; of a video, of its frames' names and hashes."""
    path = Path(path)
    if not path.is_dir():
        return sha256(path)
    names = "".join(f"{frame.name} {sha256(frame)}\n" for frame in frames_of(path))
    return hashlib.sha256(names.encode()).hexdigest()
