import subprocess
import sys

import pytest
import torch

from segquant.base.config import Recipe
from segquant.base.errors import ConfigError, ModelError
from segquant.deploy.transformers_folder import export_transformers
from segquant.quant.artifacts import load_quantized
from segquant.quant.build import build

CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
RECIPES = {
    "float32": Recipe("float32"),
    "bfloat16": Recipe("bfloat16"),
    "float8": Recipe("float8", layers="linear"),
    "int8": Recipe("int8", layers="linear"),
    "int8_dynamic": Recipe("int8", activations="int8", layers="linear"),
    "int4": Recipe("int4", 32, "hqq", layers="linear"),
    "int2": Recipe("int2", 32, "gptq", layers="linear"),
    "int4_chosen_layers": Recipe("int4", 32, "hqq", layers=("*.fc1", "*.q_proj")),
}
# Runs in a process that cannot import segquant.
LOAD = """
import sys, torch
sys.modules["segquant"] = None
from pathlib import Path
from transformers import AutoModelForSemanticSegmentation
pixels = torch.load(sys.argv[1], weights_only=True)
for folder in map(Path, sys.argv[2:]):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval().requires_grad_(False)
    with torch.inference_mode():
        torch.save(model(pixels.to(next(model.parameters()).dtype)).logits, folder / "logits.pt")
    print(folder.name, type(model.get_submodule("segformer.stages.0.blocks.0.mlp.fc1").weight).__name__)
"""


def test_transformers_loads_the_folder_without_segquant_and_gives_the_same_logits(tiny_folder, tmp_path):
    torch.save(IMAGES, tmp_path / "pixels.pt")
    folders = [tmp_path / "out" / method for method in RECIPES]
    for folder in folders:
        build(tiny_folder, RECIPES[folder.name], tmp_path / folder.name, CPU, IMAGES)
        size = export_transformers(tmp_path / folder.name, folder)
        assert size == (folder / "model.safetensors").stat().st_size
    arguments = map(str, [tmp_path / "pixels.pt", *folders])
    result = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    classes = dict(line.split() for line in result.stdout.splitlines())
    for folder in folders:
        model = load_quantized(tmp_path / folder.name)
        with torch.inference_mode():
            expected = model(IMAGES.to(next(model.parameters()).dtype)).logits
        assert torch.equal(torch.load(folder / "logits.pt", weights_only=True), expected), folder.name
        quantized = folder.name not in ("float32", "bfloat16")
        assert ("Parameter" in classes[folder.name]) != quantized, classes  # quantized weights are torchao's tensors


def test_quantized_convolutions_are_refused_and_nothing_is_written(tiny_folder, tmp_path):
    build(tiny_folder, Recipe("int8"), tmp_path / "a", CPU)
    with pytest.raises(ModelError, match=r"7 quantized convolutions such as .*: export a method with `layers: linear`"):
        export_transformers(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine/deep").mkdir(parents=True)
    with pytest.raises(ConfigError, match="mine exists: give a new folder"):
        export_transformers(tmp_path / "a", tmp_path / "mine")
