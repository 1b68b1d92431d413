"""Published data sets from their own servers: fetched with resume, verified, unpacked."""

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
    """A zip archive: where it is, its size in bytes and its SHA-256."""

    url: str
    size: int
    sha256: str


PUBLISHED = {
    # Size and digest as in the hub's zhoubolei/scene_parse_150 (dataset_infos.json).
    "ade20k": Published(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        967_382_037,
        "7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
    ),
}


def fetch(name: str, output: str | Path) -> Path:
    """Fetch a data set of PUBLISHED and unpack it into a folder of its own in `output`, whole or not at all.

    A download that was stopped goes on where it was. Raises ConfigError for an unknown name, DataError when the
    server does not give the published file.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"data set '{name}' is unknown: choose from {', '.join(PUBLISHED)}")
    wanted = PUBLISHED[name]
    archive = Path(output) / wanted.url.rsplit("/", 1)[1]
    folder = archive.with_suffix("")
    if folder.is_dir() and any(folder.iterdir()):
        log.info("%s is there already", folder)
        return folder
    if not archive.is_file():
        _download(wanted, archive)
    elif not _is(archive, wanted):
        raise DataError(f"{archive} is there and is not the published file: move it away to fetch that one")
    _unpack(archive, folder)
    archive.unlink()
    return folder


def _download(wanted: Published, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    with progress(total=wanted.size, initial=part.stat().st_size, desc=target.name, unit="B", scale=True) as bar:
        while (have := part.stat().st_size) < wanted.size:
            stopped: Exception | str = "the connection ended early"
            try:
                _append(wanted, part, have, bar)
            except (OSError, HTTPException) as error:
                stopped = error
            if part.stat().st_size <= have:  # one that brought something is followed by another
                raise DataError(
                    f"{wanted.url} cannot be fetched ({stopped}); {have} of {wanted.size} bytes are here: the same "
                    "command goes on from there"
                )
    if not _is(part, wanted):
        part.unlink()
        raise DataError(f"{wanted.url} gave other bytes than were published: they are removed, fetch again")
    part.rename(target)


def _is(file: Path, wanted: Published) -> bool:
    return file.stat().st_size == wanted.size and sha256(file) == wanted.sha256


def _append(wanted: Published, part: Path, have: int, bar) -> None:
    """One connection's worth of the bytes from `have` on."""
    request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        goes_on = response.status == 206
        said = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
        if said and said != str(wanted.size):
            raise DataError(f"{wanted.url} has {said} bytes where {wanted.size} were published: nothing was fetched")
        if have and not goes_on:
            log.warning("%s cannot go on where it stopped: it is fetched from the start", wanted.url)
            bar.update(-have)
        with open(part, "ab" if goes_on else "wb") as file:
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
