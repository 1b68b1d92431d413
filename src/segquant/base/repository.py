"""A repository of the Hugging Face hub at one commit: the names of its files, and the files that are asked for.

The hub's client keeps what it fetched in its cache, and serves it from there when the hub cannot be reached.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from segquant.base.errors import DataError, ModelError, SegquantError, one_line

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LOG_IN = "set HF_TOKEN, or log in with `hf auth login`"
Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repository:
    """`revision` is what the client resolved to `commit`; `files` are all names there, with slashes, in their order."""

    name: str
    kind: Kind
    revision: str
    commit: str
    files: Sequence[str]

    def fetch(self, names: Sequence[str]) -> Path:
        """Download the named files, unless the cache has them, and return the folder of the commit.

        Raises ModelError or DataError, by the kind, when the hub does not give them.
        """
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        try:
            return Path(
                snapshot_download(self.name, repo_type=self.kind, revision=self.revision, allow_patterns=patterns)
            )
        except Exception as error:  # the hub, its cache and the network raise many types
            raise _refusal(error, self.name, self.kind, self.revision) from error

    def log_commit(self) -> None:
        """Log which commit is used, as a warning where the revision may lead to another one later."""
        if self.revision == self.commit:
            log.info("%s: using commit %s", self.name, self.commit)
            return
        key = {"model": "model.revision", "dataset": "data.revision"}[self.kind]
        what = "the newest revision" if self.revision == "main" else f"revision {self.revision}"
        log.warning("%s: using %s, commit %s; set %s to this commit to keep it", self.name, what, self.commit, key)


@cache
def open_repository(name: str, kind: Kind, revision: str | None = None) -> Repository:
    """Look at the hub's repository `name` at a commit, tag or branch (None: the newest), and download nothing. One
    process looks once, so that all that it reads is of one commit.

    Raises ModelError or DataError, by the kind, when there is none or it may not be read.
    """
    from huggingface_hub import HfApi

    try:
        resolved = HfApi().resolve_revision(name, repo_type=kind, revision=revision)
        files = sorted(_files(name, kind, resolved))
    except Exception as error:  # the hub, its cache and the network raise many types
        raise _refusal(error, name, kind, revision) from error
    return Repository(name, kind, resolved, resolved.resolved, files)


def called(folder: str | Path) -> str:
    """The hub id where `folder` is a model in the hub's cache, else its path."""
    parts = Path(folder).parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return str(folder)


def _files(name: str, kind: Kind, revision: str) -> list[str]:
    """The files of a commit: the list that the cache has of it, else the hub's. Where neither is to be had, those that
    the cache holds, with a warning, as they may be a part.
    """
    from huggingface_hub import HfApi, RepoFile, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, RevisionNotFoundError

    try:
        return [entry.path for entry in get_cached_repo_tree(name, repo_type=kind, revision=revision)]
    except CachedRepoTreeNotFoundError:
        pass
    try:
        tree = HfApi().list_repo_tree(name, recursive=True, revision=revision.resolved, repo_type=kind)
        return [entry.path for entry in tree if isinstance(entry, RepoFile)]
    except RevisionNotFoundError:
        raise
    except Exception as error:
        try:
            folder = Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
        except Exception:
            raise error from None
        log.warning("%s: the hub lists no files (%s), so only those in the cache are known", name, one_line(error))
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _refusal(error: Exception, name: str, kind: Kind, revision: str | None) -> SegquantError:
    if kind == "model":
        return ModelError(f"model '{name}' is no folder here and the hub gives none: {_reason(error, name, revision)}")
    reason = _reason(error, f"datasets/{name}", revision)
    return DataError(f"data source '{name}' is nothing here and the hub gives none: {reason}")


def _reason(error: Exception, page: str, revision: str | None) -> str:
    """Why the hub gives nothing and what to do, in one line that is never cut. `page` is the path of the web page."""
    from huggingface_hub import constants, errors

    while isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError) and error.__cause__:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the cache does not hold all of it: fetch it once without HF_HUB_OFFLINE"
    if isinstance(error, errors.GatedRepoError):
        terms = f"it is gated: accept its terms at {constants.ENDPOINT}/{page}"
        return f"{terms} and {_LOG_IN}" if status == 401 else f"{terms} with the account of your HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision '{revision}': choose a commit, tag or branch of {constants.ENDPOINT}/{page}"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return (
            f"there is none of this name, or it is private (HTTP {status}): check the name; if it is private, {_LOG_IN}"
        )
    if status == 403:
        return f"access is forbidden (HTTP 403): {_LOG_IN}, with an account and a token that may read it"
    if status == 429:
        return "too many requests (HTTP 429): wait a few minutes, or set HF_TOKEN, which has a higher limit"
    if status >= 500:
        return f"the hub fails (HTTP {status}): try again later"
    if status or isinstance(error, OSError | ValueError):  # of the cache, the disk or the name
        return one_line(error, 1000)
    return f"it cannot be reached ({one_line(error)}): check the network and HF_ENDPOINT"
