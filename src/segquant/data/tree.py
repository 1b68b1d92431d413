"""The files of a folder or of a zip archive, by their names below it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

from segquant.errors import DataError

LARGEST = 1 << 30  # bytes of a file in an archive: a small one may unpack to more than memory holds


class Folder:
    """The files below a folder; hidden ones are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, folder: str) -> bool:
        return (self.root / folder).is_dir()

    def names(self, under: str = "") -> list[str]:
        """Names of the files in and below the folder `under`, sorted; none where there is no such folder."""
        found = []
        for place, folders, files in os.walk(self.root / under, followlinks=True):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            found += [Path(place, file).relative_to(self.root).as_posix() for file in files if not file.startswith(".")]
        return sorted(found)

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(name)} cannot be read: {error.strerror}") from error

    def where(self, name: str) -> str:
        """How a message names a file."""
        return str(self.root / name)


class Archive:
    """The files in a zip archive, read where they lie; a single folder that holds all of them is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        names = [entry.filename for entry in self._file().infolist() if not entry.is_dir()]
        outside = next((name for name in names if is_outside(name)), None)
        if outside is not None:
            raise DataError(f"{path} holds '{outside}', which would lie outside of it: do not trust this archive")
        names = [name for name in names if not name.startswith("__MACOSX/") and "/." not in f"/{name}"]
        tops = {name.split("/")[0] if "/" in name else "" for name in names}
        self.top = f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""
        self._names = sorted(name.removeprefix(self.top) for name in names)

    def has(self, folder: str) -> bool:
        return bool(self.names(folder))

    def names(self, under: str = "") -> list[str]:
        return [name for name in self._names if not under or name.startswith(f"{under}/")]

    def read(self, name: str) -> bytes:
        try:
            size = self._file().getinfo(self.top + name).file_size
            if size > LARGEST:
                raise DataError(f"{self.where(name)} unpacks to {size} bytes, which no image has: take it out")
            return self._file().read(self.top + name)
        except (OSError, RuntimeError, KeyError, zipfile.BadZipFile) as error:  # RuntimeError: it is encrypted
            raise DataError(f"{self.where(name)} cannot be read ({error}): fetch the archive again") from error

    def where(self, name: str) -> str:
        return f"{self.path}:{self.top}{name}"

    def _file(self) -> zipfile.ZipFile:
        """Open in this process: a forked one would share its parent's place in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.path} is not a readable zip archive ({error}): fetch it again") from error
        return self._opened[1]


def is_outside(name: str) -> bool:
    """Whether an archive's entry would be written outside of the folder that it is unpacked to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":")


def open_tree(path: Path) -> Folder | Archive:
    return Folder(path) if path.is_dir() else Archive(path)
