"""Model hubs in Hugging Face's layout: files of a repository at one commit, fetched and checked.

A file is put in place only if its size and hash are those that the hub states for that commit.
Until then it grows in `.parts`, where a fetch that was interrupted continues. `hf_hub_download`
would discard such parts, and one of FLUX.1's files has 10 GB.
"""

import contextlib
import errno
import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tqdm import tqdm

from eigencache._files import sha256

SCHEME = "hf://"
# What the hub answers when it is busy or being restarted.
PASSING = (408, 429, 500, 502, 503, 504)


class HubError(ValueError):
    """The hub refuses, cannot be reached or sent wrong data, or the disk is full."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit.

    Attributes:
        path: in the repository.
        bytes: its size.
        digest: what the hub states: the SHA-256 of a large file, git's SHA-1 of a small one.
        pin: the SHA-256 that it must also have, or None.
    """

    path: str
    bytes: int
    digest: str
    pin: str | None = None

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with a copy of the file, or None."""
        if not path.is_file():
            return "missing"
        if path.stat().st_size != self.bytes:
            return f"has {path.stat().st_size} bytes, the hub states {self.bytes}"
        if (sha256 if len(self.digest) == 64 else _git_sha1)(path) != self.digest:
            return f"its hash is not {self.digest[:12]}..., which the hub states"
        if self.pin not in (None, self.digest) and sha256(path) != self.pin:
            return f"its sha256 is not the pinned {self.pin[:12]}..."
        return None


def download(
    source: str, wanted: Collection[str], pins: Mapping[str, str], folder: Path
) -> dict[str, dict]:
    """Fetch files of a repository into `folder`; those that already match are kept.

    Args:
        source: `hf://OWNER/NAME@REVISION`, or without a revision for the newest commit.
        wanted: paths or shell patterns of paths in the repository.
        pins: path to the SHA-256 that its file must have.
        folder: where to.

    Returns:
        path to `bytes`, `sha256` and `source`, with the commit, of every file.

    Raises:
        HubError: see there; the message says what to do. No wrong file is put in place.
    """
    repository, _, revision = source.removeprefix(SCHEME).partition("@")
    folder.mkdir(parents=True, exist_ok=True)
    todo: list[HubFile] = []
    with _plainly(repository, revision, folder, todo):
        commit, files = _stated(repository, revision, wanted, pins)
        todo += [file for file in files if file.fault(folder / file.path)]
        if _lacking(todo, folder):
            raise HubError(_lacking(todo, folder))
        total = sum(file.bytes for file in todo)
        with tqdm(total=total, desc=repository, unit="B", unit_scale=True) as progress:
            for file in todo:
                _get(hf_hub_url(repository, file.path, revision=commit), file, folder, progress)
    with contextlib.suppress(OSError):  # parts of other revisions may be in it
        (folder / ".parts").rmdir()
    if commit != revision:
        print(
            f"warning: {source} is not pinned; it is {commit} now. To pin it, write "
            f"{SCHEME}{repository}@{commit} as its source"
        )
    return {
        file.path: {
            "bytes": file.bytes,
            "sha256": file.digest if len(file.digest) == 64 else sha256(folder / file.path),
            "source": f"{SCHEME}{repository}@{commit}",
        }
        for file in files
    }


def _stated(
    repository: str, revision: str, wanted: Collection[str], pins: Mapping[str, str]
) -> tuple[str, list[HubFile]]:
    """Return the commit that a revision is, and its wanted files as the hub states them."""
    info = patiently(
        HfApi().model_info,
        repository, revision=revision or None, files_metadata=True, timeout=30,
    )  # fmt: skip
    where = f"{repository}@{info.sha}"
    stated = {entry.rfilename: entry for entry in info.siblings}
    found = {pattern: fnmatch.filter(stated, pattern) for pattern in wanted}
    files = []
    for path in sorted({path for paths in found.values() for path in paths}):
        large, pin = stated[path].lfs, pins.get(path)
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise HubError(f"{where}: the path {path!r} leads out of the repository")
        if large and pin and pin != large.sha256:
            raise HubError(
                f"{where}: the hub states {large.sha256} for {path}, the table of models pins {pin}"
            )
        digest = large.sha256 if large else stated[path].blob_id
        # It names a file here, so it must be nothing but a hash.
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(digest)):
            raise HubError(f"{where}: the hub states no hash for {path}, but {digest!r}")
        files.append(HubFile(path, stated[path].size, digest, pin))
    for pattern in wanted:
        if not found[pattern]:
            raise HubError(f"{where}: has no file {pattern}; correct the table of models")
    return info.sha, files


def _get(url: str, file: HubFile, folder: Path, progress: tqdm) -> None:
    target, part = folder / file.path, folder / ".parts" / file.digest
    part.parent.mkdir(exist_ok=True)
    patiently(_go_on, url, part, file.bytes, progress, progress.n)
    fault = file.fault(part)
    if fault:
        part.unlink()
        raise HubError(f"{url}: {fault}; it was thrown away, run again to fetch it anew")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)


def _go_on(url: str, part: Path, size: int, progress: tqdm, before: int) -> None:
    """Fetch what `part` still lacks of its `size`; `before` is the progress before the file."""
    done = part.stat().st_size if part.exists() else 0
    if done >= size > 0:
        return  # its hash is still to be checked
    headers = build_hf_headers() | {"accept-encoding": "identity"}
    if done:
        headers["range"] = f"bytes={done}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            done = 0  # the server sends the whole file
        progress.update(before + done - progress.n)
        with part.open("ab" if done else "wb") as out:
            for chunk in response.iter_bytes():
                out.write(chunk)
                progress.update(len(chunk))


def _passes(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, httpx2.TransportError)


def _tell(state) -> None:
    error, wait = state.outcome.exception(), state.next_action.sleep
    tqdm.write(f"{type(error).__name__}: {error}; trying again in {wait:.0f} s")


patiently = Retrying(
    retry=retry_if_exception(_passes),
    stop=stop_after_attempt(5),
    wait=wait_exponential(max=30),
    before_sleep=_tell,
    reraise=True,
)


@contextlib.contextmanager
def _plainly(repository: str, revision: str, folder: Path, todo: list[HubFile]) -> Iterator[None]:
    """Turn errors inside a `with` block into a HubError that says what to do."""
    page = f"{constants.ENDPOINT}/{repository}"
    token = "HF_TOKEN is set" if get_token() else "HF_TOKEN is not set"
    try:
        yield
    except RevisionNotFoundError:
        raise HubError(
            f"{page}: has no revision {revision!r}; correct the source in the table of models"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
            raise HubError(
                f"{page}: no such repository, or a private one ({token}); correct the source in "
                "the table of models, or set HF_TOKEN to a token that may read it"
            ) from None
        if status in (401, 403):
            raise HubError(
                f"{page}: the hub gives this model only to those who accepted its licence "
                f"({token}). Log in there, accept the licence on that page, make a token that may "
                f"read ({constants.ENDPOINT}/settings/tokens), export HF_TOKEN=... and run again"
            ) from None
        raise HubError(f"{page}: the hub answers {status}: {_first_line(error)}") from None
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: "
            f"{_first_line(error)}). Run again when it can. Without a connection: copy {folder} "
            f"from a machine that fetched it, or set `model_path` to a folder with {repository}"
            f"{'@' if revision else ''}{revision}"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HubError(
            _lacking(todo, folder)
            or f"{folder}: {error.strerror}; make room and run again: it goes on"
        ) from None


def _lacking(todo: list[HubFile], folder: Path) -> str | None:
    """Return an error message if the disk has no room for the files, or None."""
    parts = [folder / ".parts" / file.digest for file in todo]
    need = sum(file.bytes for file in todo) - sum(p.stat().st_size for p in parts if p.exists())
    free = shutil.disk_usage(folder).free
    if need <= free:
        return None
    return (
        f"{folder}: {need / 1e9:.2f} GB are still to be fetched, the disk has {free / 1e9:.2f} GB "
        "free; make room, or let models/ be a link to a larger disk, and run again: it goes on"
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _git_sha1(path: Path) -> str:
    """Return the SHA-1 by which git names a file's bytes."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
