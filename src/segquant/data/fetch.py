"""Download published data sets from their own servers: resume, verify, unpack."""

from __future__ import annotations

import logging
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from segquant.base.errors import ConfigError, DataError
from segquant.base.files import replacing, sha256
from segquant.base.progress import progress
from segquant.data.tree import Archive

log = logging.getLogger(__name__)
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Published:
    """A zip archive: its URL, its size in bytes and its SHA-256."""

    url: str
    size: int
    sha256: str


PUBLISHED = {
    # Size and digest from dataset_infos.json of zhoubolei/scene_parse_150 on the hub.
    "ade20k": Published(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        967_382_037,
        "7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
    ),
}


def fetch(name: str, output: str | Path) -> tuple[Path, bool]:
    """Download a data set of PUBLISHED, unpack it into a folder in `output`, whole or not at all.

    Returns the folder, and whether its content was verified: one that was there before is taken as it is. An
    interrupted download resumes where it stopped. Raises ConfigError for an unknown name, DataError when the server
    does not deliver the published file.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"data set '{name}' is unknown: choose from {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    archive = Path(output) / published.url.rsplit("/", 1)[1]
    folder = archive.with_suffix("")
    if folder.is_dir() and any(folder.iterdir()):
        log.warning("%s was there already and was not checked: to fetch it again, move it away", folder)
        return folder, False
    if not archive.is_file():
        _download(published, archive)
    elif not _matches(archive, published):
        raise DataError(f"{archive} exists but is not the published file: move it away, then fetch again")
    _unpack(archive, folder)
    archive.unlink()
    return folder, True


def _download(published: Published, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    with progress(total=published.size, initial=part.stat().st_size, desc=target.name, unit="B", scale=True) as bar:
        while (have := part.stat().st_size) < published.size:
            reason: Exception | str = "the connection ended early"
            try:
                _append(published, part, have, bar)
            except (OSError, HTTPException) as error:
                reason = error
            if part.stat().st_size <= have:  # a connection that delivered bytes is retried
                raise DataError(
                    f"{published.url} cannot be fetched ({reason}), {have} of {published.size} bytes are here: run the "
                    "same command again to resume"
                )
    if not _matches(part, published):
        part.unlink()
        raise DataError(f"{published.url} does not match its published SHA-256: the download was deleted, fetch again")
    part.rename(target)


def _matches(file: Path, published: Published) -> bool:
    return file.stat().st_size == published.size and sha256(file) == published.sha256


def _append(published: Published, part: Path, have: int, bar) -> None:
    """Open one connection, request the bytes from `have` on and append what it delivers to `part`."""
    request = urllib.request.Request(published.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        resumes = response.status == 206
        length = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
        if length and length != str(published.size):
            raise DataError(
                f"{published.url} has {length} bytes instead of the published {published.size}: nothing was fetched, "
                "check the network"
            )
        if have and not resumes:
            log.warning("%s: the server cannot resume, the download starts again", published.url)
            bar.update(-have)
        with open(part, "ab" if resumes else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _unpack(archive: Path, folder: Path) -> None:
    tree = Archive(archive)
    names = tree.names()
    with replacing(folder) as part, progress(total=len(names), desc=f"unpack {folder.name}", unit="file") as bar:
        for name in names:
            file = part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tree.read(name))
            bar.update()
