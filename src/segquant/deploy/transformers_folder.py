"""An artifact as a folder that transformers loads by itself, where torchao has a tensor class for all of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save
from torch import nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig

from segquant.base.errors import ModelError
from segquant.base.files import replacing, write_bytes
from segquant.quant.artifacts import load_artifact
from segquant.quant.tensors import CASTS


def export_transformers(artifact: str | Path, folder: str | Path) -> int:
    """Write `folder` for `AutoModelForSemanticSegmentation.from_pretrained`; give back the bytes of its weights.

    It needs torch, transformers and torchao to load, not segquant. Codes below 8 bits take a byte each there,
    as torchao keeps them. Raises ModelError for an artifact with quantized convolutions, as transformers makes
    a Conv2d of each and torchao has no class for their weights, and for a `folder` that exists.
    """
    if Path(folder).exists():
        raise ModelError(f"{folder} exists: give a new folder, or remove that one first")
    loaded = load_artifact(artifact)
    model, info = loaded.model, loaded.info
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    convs = sorted({name for name in info["modules"] if name not in linear} | set(info["linear_convs"]))
    if convs:
        raise ModelError(
            f"{artifact} has {len(convs)} quantized convolutions such as {convs[0]}, which torchao and transformers "
            "have no class for: export a method with `layers: linear`"
        )
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if info["recipe"]["weights"] not in CASTS:
        # The kind of configuration says only that torchao is to rebuild the tensors; the header says how.
        kept = sorted(linear - info["modules"].keys())
        model.config.quantization_config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept or None)
    model.config.dtype = next(p.dtype for p in model.parameters())
    tensors, metadata = flatten_tensor_state_dict(state)
    with replacing(folder) as part:
        part.mkdir()
        model.config.save_pretrained(part)
        shutil.copyfile(Path(artifact) / "preprocessor_config.json", part / "preprocessor_config.json")
        write_bytes(part / "model.safetensors", save(tensors, {**metadata, "format": "pt"}))
        return (part / "model.safetensors").stat().st_size
