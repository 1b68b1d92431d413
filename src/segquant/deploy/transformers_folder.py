"""Export an artifact as a folder that transformers loads without segquant, if torchao can hold all its weights."""

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
from segquant.base.output import check_new
from segquant.quant.artifacts import load_artifact
from segquant.quant.tensors import CASTS


def export_transformers(artifact: str | Path, folder: str | Path) -> int:
    """Write `folder` for `AutoModelForSemanticSegmentation.from_pretrained`, and return the bytes of its weights.

    Loading it takes torch, transformers and torchao, but not segquant. Codes below 8 bits take a byte each, because
    torchao stores them so. Raises ConfigError for a `folder` that holds anything or lies in the artifact, and
    ModelError for an artifact with quantized convolutions: transformers makes each a Conv2d, and torchao has no tensor
    class for its weight.
    """
    check_new(Path(folder), [artifact])
    loaded = load_artifact(artifact)
    model, info = loaded.model, loaded.info
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    convs = sorted({name for name in info["modules"] if name not in linear} | set(info["linear_convs"]))
    if convs:
        raise ModelError(
            f"{artifact} has {len(convs)} quantized convolutions such as {convs[0]}, for which transformers and "
            "torchao have no class: export a method with `layers: linear`"
        )
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if info["recipe"]["weights"] not in CASTS:
        # Any torchao configuration makes transformers rebuild the tensors; the header of the file says how.
        floats = sorted(linear - info["modules"].keys())
        model.config.quantization_config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=floats or None)
    model.config.dtype = next(p.dtype for p in model.parameters())
    tensors, metadata = flatten_tensor_state_dict(state)
    with replacing(folder, fresh=True) as part:
        part.mkdir()
        model.config.save_pretrained(part)
        shutil.copyfile(Path(artifact) / "preprocessor_config.json", part / "preprocessor_config.json")
        write_bytes(part / "model.safetensors", save(tensors, {**metadata, "format": "pt"}))
        return (part / "model.safetensors").stat().st_size
