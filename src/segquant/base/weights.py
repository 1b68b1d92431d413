"""Which files hold a model's weights: one file, or an index and its shards."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from segquant.base.errors import ModelError
from segquant.base.files import read_json

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
_ADAPTER = "adapter_config.json"  # transformers reads it where peft is installed, and nothing of it elsewhere
# The files of model.save_pretrained(variant="fp16"), whole, in shards, and the index of the shards.
_VARIANT = re.compile(r"model\.\w+(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.\w+\.json")
_FORMATS = {
    ".onnx": "ONNX",
    ".h5": "TensorFlow",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".msgpack": "Flax",
    ".pth": "a checkpoint of another program",
    ".pt": "a checkpoint of another program",
    ".ckpt": "a checkpoint of another program",
    ".safetensors": "weights by another name",
}


def choose(names: Collection[str], model: str) -> str:
    """The name of the file to load among the `names` of a folder or repository, by the preference of transformers.

    It is the weights themselves, or the index of their shards. Raises ModelError for an adapter beside them, and when
    config.json or the weights are missing: in one line that says what is there instead, and what to do.
    """
    weights = [whole + part for whole in (SAFETENSORS, PICKLE) for part in ("", INDEX) if whole + part in names]
    if _ADAPTER in names:
        raise ModelError(
            f"model '{model}' has an adapter ({_ADAPTER}), which would be left out: merge it into the weights (peft's "
            "merge_and_unload) and save those alone"
        )
    if weights and "config.json" in names:
        return weights[0]
    needs = [] if "config.json" in names else ["config.json"]
    needs += [] if weights else [SAFETENSORS]
    raise ModelError(f"model '{model}' is incomplete: it needs {' and '.join(needs)}; {_instead(names)}")


def shards(index: Path, model: str) -> list[str]:
    """The names of the files that an index lists, in their order. Raises ModelError for one that is no index."""
    listed = read_json(index)
    weight_map = listed.get("weight_map") if isinstance(listed, dict) else None
    files = sorted({str(file) for file in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not files or any("/" in file or "\\" in file or file in (".", "..") for file in files):
        raise ModelError(f"model '{model}' is broken: {index.name} names no files beside it in its weight_map")
    if not isinstance(listed.get("metadata"), dict):
        raise ModelError(
            f"model '{model}' is broken: {index.name} has no \"metadata\", an object that may be empty: add it"
        )
    return files


def _instead(names: Collection[str]) -> str:
    """What is there, and what to do with weights that are not read."""
    variants = sorted(name for name in names if _VARIANT.fullmatch(name))
    if variants:
        index = next((name for name in variants if name.endswith(".json")), None)
        old, new = (index, SAFETENSORS + INDEX) if index else (variants[0], SAFETENSORS)
        return f"it has the variant {variants[0]}: rename {old} to {new} (of a hub id, in a folder with its files)"
    others = [f"{name} ({kind})" for name in sorted(names) if (kind := _FORMATS.get(PurePosixPath(name).suffix))]
    if others and SAFETENSORS not in names:
        return f"it has only {_listed(others)}: choose a model with safetensors, or save it so (save_pretrained)"
    return f"it has {_listed(sorted(names))}" if names else "it has no files"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
