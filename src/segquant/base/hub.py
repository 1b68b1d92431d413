"""Find the files of a model: in a folder, on the Hugging Face hub, or at an https URL."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import urllib.error
from http.client import HTTPException
from pathlib import Path

from segquant.base import files as disk
from segquant.base.errors import ConfigError, ModelError, one_line
from segquant.base.files import replacing
from segquant.base.repository import HUB_ID, called, open_repository
from segquant.base.weights import INDEX, SAFETENSORS, choose, shards

CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json", "quantization.json")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")


def locate(source: str | Path, revision: str | None = None, sha256: str | None = None) -> Path:
    """Return the local folder of a model, with its config.json and weights.

    `source` is a folder, a hub id (owner/name; `revision` is a commit, tag or branch), or the https URL of a
    safetensors file beside its config.json (`sha256` of the file is required). Downloads are cached.
    Raises ModelError when the model does not exist, ConfigError for a URL without `sha256`.
    """
    text = str(source)
    if Path(source).is_dir():
        return Path(source)
    if text.startswith("https://"):
        return _download(text, sha256)
    if HUB_ID.fullmatch(text) and not Path(source).exists():
        return _snapshot(text, revision)
    if Path(source).exists():
        raise ModelError(f"model '{source}' is a file: give the folder that holds it, with its config.json")
    raise ModelError(f"model '{source}' is not there: give a folder, a hub id (owner/name) or an https URL")


def files(folder: Path) -> list[Path]:
    """List a model's files in `folder`: its configuration files and its weights, safetensors if there are any.

    Weights are one file, or an index and its shards. Raises ModelError when config.json or some weights are missing.
    """
    return [path for path in (folder / name for name in CONFIGS) if path.is_file()] + _weights(folder)


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 (hexadecimal) of a model's weights file; of several files, of the list of theirs."""
    digests = [disk.sha256(path) for path in _weights(Path(folder))]
    return digests[0] if len(digests) == 1 else disk.digest(digests)


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
    from torch.hub import download_url_to_file

    name = url.split("?")[0].rsplit("/", 1)[1]
    if name.endswith(INDEX) or _SHARD.search(name):
        raise ModelError(
            f"model '{url}' is one file of a sharded checkpoint, and a URL fetches no others: give its hub id, or a "
            "folder with config.json, the index and all shards"
        )
    if not name.endswith(".safetensors"):
        raise ModelError(
            f"model '{url}' is not a safetensors file: give one, because a pickle from the network can run code"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", sha256 or ""):
        raise ConfigError(f"model '{url}' needs model.sha256: set it to the SHA-256 of the file, 64 hexadecimal digits")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "segquant" / f"{sha256}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    try:
        with replacing(folder) as part:
            part.mkdir()
            for name in CONFIGS:
                _download_config(f"{url.split('?')[0].rsplit('/', 1)[0]}/{name}", part / name, name == "config.json")
            download_url_to_file(url, str(part / SAFETENSORS), hash_prefix=sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # RuntimeError: the hash is wrong
        raise ModelError(f"model '{url}' cannot be fetched: {one_line(error)}") from error
    return folder


def _download_config(url: str, target: Path, required: bool) -> None:
    from torch.hub import download_url_to_file

    try:
        download_url_to_file(url, str(target), progress=False)
    except urllib.error.HTTPError as error:
        if required or error.code != 404:
            raise
