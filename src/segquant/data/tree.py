"""Read the files of a folder or of a zip archive by their relative names."""

from __future__ import annotations

import copy
import os
import zipfile
from pathlib import Path, PurePosixPath

from segquant.base.errors import DataError, one_line
from segquant.base.files import read_file, size_of_file

LARGEST = 1 << 30  # bytes of an unpacked file; protects the memory from decompression bombs

_STEP = 1 << 13  # packed bytes at a time: bzip2 makes twenty thousand times as many of them


class Folder:
    """The files below a folder, without hidden files and folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, folder: str) -> bool:
        return (self.root / folder).is_dir()

    def folders(self) -> list[str]:
        """Sorted names of the folders directly in this folder."""
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def below(self, folder: str) -> Folder:
        return Folder(self.root / folder)

    def names(self, under: str = "") -> list[str]:
        """Sorted names of all files below the folder `under`; empty where it does not exist.

        Raises DataError for a link to a folder around it: its files would count again and again.
        """
        names = []
        for parent, folders, files in os.walk(self.root / under, followlinks=True):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            for path in (Path(parent, folder) for folder in folders):
                if path.is_symlink() and Path(parent).resolve().is_relative_to(path.resolve()):
                    raise DataError(f"{path} links to {path.resolve()}, a folder that holds it: remove the link")
            names += [
                Path(parent, file).relative_to(self.root).as_posix() for file in files if not file.startswith(".")
            ]
        return sorted(names)

    def inside(self, name: str) -> str:
        """A path or pattern as names are here."""
        return name.removeprefix("./")

    def read(self, name: str, most: int | None = None) -> bytes:
        """Raises DataError when the file cannot be read, has more bytes than `most` or is no file, as a named pipe.

        `most` is LARGEST where none is given.
        """
        try:
            return read_file(self.root / name, most or LARGEST)
        except OSError as error:
            raise DataError(f"{self.where(name)} cannot be read ({error.strerror}): replace or remove it") from error

    def where(self, name: str) -> str:
        """The name of a file in error messages."""
        return str(self.root / name)


class Archive:
    """The files in a zip archive, read without unpacking it. A single folder around all files is not part of the names.

    Raises DataError when the archive is broken, or holds a name twice or a name that leads outside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._stored: dict[str, str] = {}  # name used here: name in the archive
        for entry in self._file().infolist():
            name = entry.filename.replace("\\", "/")  # a few Windows programs write backslashes
            if is_outside(name):
                raise DataError(
                    f"{path} holds '{name}', which would unpack outside of its folder: do not trust this archive"
                )
            folder, name = name.endswith("/"), PurePosixPath(name).as_posix()  # "./a" and "a//b" are "a" and "a/b"
            if folder or name.startswith("__MACOSX/") or "/." in f"/{name}":
                continue
            if name in self._stored:
                raise DataError(f"{path} holds '{name}' twice: create it again")
            self._stored[name] = entry.filename
        self.top, self._names = "", sorted(self._stored)
        folders = self.folders()
        if len(folders) == 1 and len(self.names(folders[0])) == len(self._names):
            self.top, self._names = f"{folders[0]}/", self.below(folders[0])._names

    def has(self, folder: str) -> bool:
        return bool(self.names(folder))

    def folders(self) -> list[str]:
        """Sorted names of the folders directly in this folder."""
        return sorted({name.split("/")[0] for name in self._names if "/" in name})

    def below(self, folder: str) -> Archive:
        subtree = copy.copy(self)
        subtree.top = f"{self.top}{folder}/"
        subtree._names = [name.removeprefix(f"{folder}/") for name in self.names(folder)]
        return subtree

    def names(self, under: str = "") -> list[str]:
        return [name for name in self._names if not under or name.startswith(f"{under}/")]

    def inside(self, name: str) -> str:
        """A path or pattern as names are here: the folder around all files may stand before it."""
        name = name.removeprefix("./")
        return name if self.has(self.top.rstrip("/")) else name.removeprefix(self.top)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Raises DataError when the file cannot be read, or has more bytes than `most` or than its entry says."""
        stored = self._stored[self.top + name]
        try:
            size = self._file().getinfo(stored).file_size
            if size > (most := most or LARGEST):
                raise DataError(
                    f"{self.where(name)} unpacks to {size} bytes, more than the {most} of any such file: remove it"
                )
            with self._file().open(stored) as file:  # `read` unpacks up to 2 GB at once, whatever the entry says
                return b"".join(iter(lambda: file.read(_STEP), b""))
        except RuntimeError as error:  # it is encrypted, or Python lacks the compression
            raise DataError(f"{self.where(name)} cannot be read ({error}): unpack the archive to a folder") from error
        except DataError:
            raise
        except Exception as error:  # zipfile and its decompressors raise many types
            reason = one_line(error)
            raise DataError(f"{self.where(name)} cannot be read ({reason}): fetch the archive again") from error

    def where(self, name: str) -> str:
        return f"{self.path}:{self.top}{name}"

    def _file(self) -> zipfile.ZipFile:
        """Open the archive once per process: a forked process would share its parent's position in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                size_of_file(self.path)
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except Exception as error:  # zipfile raises many types
                reason = one_line(error)
                raise DataError(f"{self.path} is not a readable zip archive ({reason}): fetch it again") from error
        return self._opened[1]


def is_outside(name: str) -> bool:
    """Whether an archive's entry would be unpacked outside of the target folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":")


def open_tree(path: Path) -> Folder | Archive:
    return Folder(path) if path.is_dir() else Archive(path)
