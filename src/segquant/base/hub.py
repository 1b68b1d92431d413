"""Find the files of a model (in a folder, on the Hugging Face hub, at an https URL) or of a data set on the hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import urllib.error
from http.client import HTTPException
from pathlib import Path

from segquant.base.errors import ConfigError, DataError, ModelError, one_line
from segquant.base.files import replacing

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIGS = ("config.json", "preprocessor_config.json", "quantization.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def locate(source: str | Path, revision: str | None = None, sha256: str | None = None) -> Path:
    """Return the local folder of a model, with its config.json and model.safetensors.

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


def data_snapshot(name: str, revision: str | None = None, configuration: str | None = None) -> Path:
    """Download the Parquet files of a data set on the hub and return their local folder.

    `configuration` is the folder to download; None downloads all. Raises DataError when the hub has no such data set,
    or the data set has no Parquet files.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"{configuration}/**" if configuration else "**.parquet"]
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub, its cache and the network raise many types
        raise DataError(f"data source '{name}' is nothing here and the hub gives none: {one_line(error)}") from error
    if next((folder / (configuration or "")).rglob("*.parquet"), None) is None:
        where = f"{configuration} at " if configuration else ""
        raise DataError(
            f"data source '{name}' has no Parquet files in {where}revision {revision or 'main'}: choose "
            "data.configuration and data.revision (the hub converts most data sets at refs/convert/parquet)"
        )
    _log_revision(name, revision, folder.name, "data.revision")
    return folder


def files(folder: Path) -> list[Path]:
    """List a model's files in `folder`: its configuration files and one weights file, safetensors if there is one.

    Raises ModelError when config.json or the weights are missing.
    """
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()][:1]
    if not weights or not (folder / "config.json").is_file():
        raise ModelError(f"model '{folder}' is incomplete: it needs config.json and model.safetensors")
    return [path for path in (folder / name for name in CONFIGS) if path.is_file()] + weights


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    for weights in WEIGHTS:
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*CONFIGS, weights]))
        except Exception as error:  # the hub, its cache and the network raise many types
            raise ModelError(f"model '{name}' is no folder here and the hub gives none: {one_line(error)}") from error
        if (folder / weights).is_file():
            break
    _log_revision(name, revision, folder.name, "model.revision")
    return folder


def _log_revision(name: str, revision: str | None, commit: str, key: str) -> None:
    if revision is None:
        log.warning("%s: using the newest revision, commit %s; set %s to this commit to keep it", name, commit, key)
    else:
        log.info("%s: using revision %s, commit %s", name, revision, commit)


def _download(url: str, sha256: str | None) -> Path:
    from torch.hub import download_url_to_file

    if not url.split("?")[0].endswith(".safetensors"):
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
            download_url_to_file(url, str(part / WEIGHTS[0]), hash_prefix=sha256, progress=sys.stderr.isatty())
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
