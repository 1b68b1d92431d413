"""Find the files of a model: in a folder, on the Hugging Face hub, or at an https URL."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from segquant.base import files as disk
from segquant.base import https
from segquant.base.errors import ConfigError, ModelError
from segquant.base.files import replacing
from segquant.base.repository import HUB_ID, called, open_repository
from segquant.base.text import shown_url
from segquant.base.weights import INDEX, SAFETENSORS, choose, shards

CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json", "quantization.json")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_INSTEAD = "check the URL, or give a folder with its files"
_LIMITS = {**dict.fromkeys(CONFIGS, 8 << 20), SAFETENSORS: 8 << 30}  # bytes of what a URL fetches, in this order


def locate(source: str | Path, revision: str | None = None, sha256: str | None = None) -> Path:
    """Return the local folder of a model, with its config.json and weights.

    `source` is a folder, a hub id (owner/name; `revision` is a commit, tag or branch), or the https URL of a
    safetensors file beside its config.json (`sha256`, which is required, is `listed_sha256` of the files there).
    Downloads are cached, and checked each time.
    Raises ModelError when the model does not exist or is not that of `sha256`, ConfigError for a URL without it, and
    for a revision or a checksum of what has none.
    """
    text, is_url, is_there = str(source), str(source).startswith("https://"), os.path.exists(source)
    if sha256 and not is_url:
        raise ConfigError(f"model.sha256 (--sha256) is of a URL, and '{shown_url(text)}' is none: leave it out")
    if revision and (is_url or is_there):
        kind = "a URL" if is_url else "here"
        raise ConfigError(
            f"model.revision (--revision) is of a hub id, and '{shown_url(text)}' is {kind}: leave it out"
        )
    if is_url:
        return _download(text, sha256)
    if os.path.isdir(source):
        return Path(source)
    if is_there:
        raise ModelError(f"model '{source}' is a file: give the folder that holds it, with its config.json")
    if HUB_ID.fullmatch(text):
        return _snapshot(text, revision)
    raise ModelError(f"model '{shown_url(text)}' is not there: give a folder, a hub id (owner/name) or an https URL")


def files(folder: Path) -> list[Path]:
    """List a model's files in `folder`: its configuration files and its weights, safetensors if there are any.

    Weights are one file, or an index and its shards. Raises ModelError when config.json or some weights are missing.
    """
    return [path for path in (folder / name for name in CONFIGS) if path.is_file()] + _weights(folder)


def digests(folder: Path) -> list[str]:
    """SHA-256 (hexadecimal) of each of a model's `files`."""
    return [disk.sha256(path) for path in files(folder)]


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 (hexadecimal) of a model's weights file; of several files, of the list of theirs."""
    hashes = [disk.sha256(path) for path in _weights(Path(folder))]
    return hashes[0] if len(hashes) == 1 else disk.digest(hashes)


def listed_sha256(folder: Path) -> str:
    """SHA-256 (hexadecimal) of the list that `sha256sum *` prints of the files in `folder`, in the order of names."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256("".join(f"{disk.sha256(path)}  {path.name}\n" for path in paths).encode()).hexdigest()


def _weights(folder: Path) -> list[Path]:
    model = called(folder)
    names = {path.relative_to(folder).as_posix() for pattern in ("*", "*/*") for path in folder.glob(pattern)}
    weights = choose(names, model)
    if not weights.endswith(INDEX):
        return [folder / weights]
    parts = shards(folder / weights, model)
    if missing := [part for part in parts if part not in names]:
        raise ModelError(f"model '{model}' is incomplete: {weights} names {missing[0]}, which is not there")
    return [folder / weights, *(folder / part for part in parts)]


def _snapshot(name: str, revision: str | None) -> Path:
    repository = open_repository(name, "model", revision)
    weights = choose(repository.files, name)
    folder = repository.fetch([*(config for config in CONFIGS if config in repository.files), weights])
    if weights.endswith(INDEX):
        repository.fetch(shards(folder / weights, name))
    repository.log_commit()
    return folder


def _download(url: str, sha256: str | None) -> Path:
    model = shown_url(url)
    if problem := https.problem(url):
        raise ModelError(f"model '{model}' cannot be fetched: it {problem}: {_INSTEAD}")
    beside, _, name = urlsplit(url).path.rpartition("/")
    if name.endswith(INDEX) or _SHARD.search(name):
        raise ModelError(
            f"model '{model}' is one file of a sharded checkpoint, and a URL fetches no others: give its hub id, or a "
            "folder with config.json, the index and all shards"
        )
    if not name.endswith(".safetensors"):
        raise ModelError(
            f"model '{model}' is not a safetensors file: give one, because a pickle from the network can run code"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", sha256 or ""):
        raise ConfigError(
            f"model '{model}' needs model.sha256 (--sha256): the 64 hexadecimal digits that `{_command()}` prints in a "
            "folder with its files"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "segquant" / sha256
    if folder.is_dir() and listed_sha256(folder) == sha256:
        return folder
    with replacing(folder) as part:
        part.mkdir()
        for name, limit in _LIMITS.items():
            file = urlsplit(url)._replace(path=f"{beside}/{name}", query="", fragment="").geturl()
            weights = name == SAFETENSORS
            try:
                https.fetch(url if weights else file, part / name, limit, quiet=not (weights and sys.stderr.isatty()))
            except https.FetchError as error:
                if error.status != 404 or name in ("config.json", SAFETENSORS):
                    raise ModelError(f"model '{model}' cannot be fetched: {name}: {error}: {_INSTEAD}") from error
        _check(part, model, sha256)
    return folder


def _check(folder: Path, model: str, sha256: str) -> None:
    """Raise ModelError unless `sha256` is that of the list of all files in `folder`."""
    if (actual := listed_sha256(folder)) == sha256:
        return
    alone = " (that of the weights alone)" if disk.sha256(folder / SAFETENSORS) == sha256 else ""
    names = sorted(path.name for path in folder.iterdir())
    raise ModelError(
        f"model '{model}' is not that of model.sha256: for its files `{_command(names)}` prints {actual}, not {sha256}"
        f"{alone}: check the files, then set model.sha256 (--sha256)"
    )


def _command(names: Sequence[str] = ("config.json", SAFETENSORS, "preprocessor_config.json")) -> str:
    return f"sha256sum {' '.join(names)} | sha256sum"
