import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import segquant
from segquant import config, models
from segquant.config import Recipe
from segquant.errors import ConfigError, ModelError, UnavailableError
from segquant.quant.artifacts import describe_artifact, load_artifact, load_quantized
from segquant.quant.build import build
from segquant.quant.methods import quantize, unavailable

CPU = torch.device("cpu")
METHODS = {
    name: recipe
    for name, recipe in {
        **config.load(ROOT / "params.yaml").quant.methods,
        "int4_dynamic": Recipe("int4", 32, "hqq", "int8"),
        "int4_affine": Recipe("int4", 16, "affine"),
        "int2_per_row": Recipe("int2", None, "affine"),
        "int2_linear": Recipe("int2", 32, "hqq", layers="linear"),
    }.items()
    if unavailable(recipe, CPU) is None
}


def _logits(model):
    noise = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(noise.to(next(model.parameters()).dtype)).logits


@pytest.mark.parametrize("method", list(METHODS))
def test_an_artifact_reloads_to_bit_identical_logits(method, tiny_folder, tmp_path):
    recipe = METHODS[method]
    model = models.load(tiny_folder)
    quantize(model, recipe, CPU)
    assert build(tiny_folder, recipe, tmp_path / "a", CPU) is None
    assert torch.equal(_logits(model), _logits(load_quantized(tmp_path / "a")))


@pytest.mark.parametrize("method", ["float8", "int8", "int8_dynamic", "int4", "int3", "int2"])
def test_a_quantized_model_is_near_float32_but_is_not_it(method, tiny_folder, tmp_path):
    build(tiny_folder, METHODS[method], tmp_path / "a", CPU)
    wanted, got = _logits(models.load(tiny_folder)), _logits(load_quantized(tmp_path / "a"))
    error = ((wanted - got).norm() / wanted.norm()).item()
    assert (
        0 < error < {"float8": 0.1, "int8": 0.03, "int8_dynamic": 0.05, "int4": 0.25, "int3": 0.5, "int2": 1.0}[method]
    )


def test_a_fresh_process_gives_the_same_logits(tiny_folder, tmp_path):
    build(tiny_folder, METHODS["int3"], tmp_path / "a", CPU)
    torch.save(_logits(load_quantized(tmp_path / "a")), tmp_path / "logits.pt")
    script = (
        "import sys, torch, segquant; sys.path.insert(0, sys.argv[3]); from test_artifacts import _logits\n"
        "assert torch.equal(_logits(segquant.load_quantized(sys.argv[1])), torch.load(sys.argv[2], weights_only=True))"
    )
    arguments = [tmp_path / "a", tmp_path / "logits.pt", ROOT / "tests" / "quant"]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, env=_env())


def _env():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "tests")}


def test_codes_are_stored_at_their_true_width(tiny_folder, tmp_path):
    for method, bits in {"int8": 8, "int4": 4, "int3": 3, "int2": 2}.items():
        build(tiny_folder, METHODS[method], tmp_path / method, CPU)
        tensors = load_file(tmp_path / method / "model.safetensors")
        info = describe_artifact(tmp_path / method)
        weights = {k: v for k, v in tensors.items() if k.endswith("_weight_qdata")}
        original = models.load(tiny_folder).state_dict()
        assert len(weights) == len(info["modules"]) > 20
        for key, packed in weights.items():
            name = key.replace("._weight_qdata", "")
            assert packed.nbytes == original[f"{name.removesuffix('.linear')}.weight"].numel() * bits // 8
            entry = info["modules"][name]
            assert entry["bits"] == bits
            parts = [v.nbytes for k, v in tensors.items() if k.startswith(f"{name}._weight_")]
            assert entry["bytes"] == sum(parts)


def test_the_counts_of_segformer_b0_are_those_known(tmp_path):
    """52 Linear modules, 65.33 % of 3,752,694 parameters; with the twelve dense convolutions 98.70 %."""
    torch.manual_seed(0)
    model = models.new_segformer_b0([f"c{i}" for i in range(150)])
    assert sum(p.numel() for p in model.parameters()) == 3_752_694
    models.save(model, tmp_path / "b0")
    for layers, count, share in (("linear", 52, 0.6533), ("all", 64, 0.9870)):
        build(tmp_path / "b0", Recipe("int4", 32, "hqq", layers=layers), tmp_path / layers, CPU)
        info = describe_artifact(tmp_path / layers)
        assert len(info["modules"]) == count
        named = {name.removesuffix(".linear"): entry for name, entry in info["modules"].items()}
        weights = sum(model.get_submodule(name).weight.numel() for name in named)
        biases = sum(m.bias.numel() for m in map(model.get_submodule, named) if m.bias is not None)
        assert info["quantized_fraction"] == weights / 3_752_694
        assert round((weights + biases) / 3_752_694, 4) == pytest.approx(share, abs=1e-4)
    first = named["segformer.stages.0.patch_embeddings.proj"]
    assert first["group_size"] == 21  # of 7 * 7 * 3 inputs: the largest divisor up to 32


def test_building_twice_gives_the_same_bytes(tiny_folder, tmp_path):
    for name in ("a", "b"):
        build(tiny_folder, METHODS["int2"], tmp_path / name, CPU)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors", "preprocessor_config.json", "quantization.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_float32s_own_size_is_the_compression_of_one(tiny_folder, tmp_path):
    build(tiny_folder, METHODS["float32"], tmp_path / "a", CPU)
    artifact = load_artifact(tmp_path / "a")
    assert abs(artifact.info["float32_bytes"] / artifact.size_bytes - 1) < 1e-3


def test_an_unavailable_method_says_why_and_is_never_replaced(tiny_folder, tmp_path):
    recipe = Recipe("float8", activations="float8")
    reason = unavailable(recipe, CPU)
    assert "8.9" in reason
    assert build(tiny_folder, recipe, tmp_path / "a", CPU) == reason
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["quantization.json"]
    with pytest.raises(UnavailableError, match="8.9"):
        load_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("int4", 11), "group_size 11 divides the inputs of no layer"),
        (Recipe("int8", 32), "one scale a row: leave group_size and algorithm out"),
        (Recipe("float32", activations="int8"), "is a plain cast"),
        (Recipe("bfloat16", algorithm="hqq"), "is a plain cast"),
        (Recipe("int4", 32, activations="float8"), "no method has int4 weights with float8 activations"),
    ],
)
def test_a_recipe_that_does_not_exist_is_one_line(recipe, message, tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(tiny_folder, recipe, tmp_path / "a", CPU)
    assert not (tmp_path / "a").exists()


@pytest.fixture
def artifact(tiny_folder, tmp_path):
    build(tiny_folder, METHODS["int4"], tmp_path / "a", CPU)
    return tmp_path / "a"


def test_broken_artifacts_are_one_line(artifact, tmp_path):
    path = artifact / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_artifact(artifact)
    path.write_bytes(whole)
    info = json.loads((artifact / "quantization.json").read_text())
    name = next(k for k in info["packed"] if k.endswith("qdata"))
    for broken in ({"format": "x"}, {"packed": {name: {"bits": 3, "shape": info["packed"][name]["shape"]}}}):
        (artifact / "quantization.json").write_text(json.dumps({**info, **broken}))
        with pytest.raises(ModelError) as error:
            load_artifact(artifact)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="it has no quantization.json"):
        load_artifact(tmp_path / "nothing")


def test_broken_baselines_are_one_line(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="has no config.json: give a folder"):
        models.load(tmp_path / "none")
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        models.load(tiny_folder)
    assert "\n" not in str(error.value)


def test_importing_segquant_costs_nothing_heavy():
    script = (
        "import sys, segquant; heavy = {'torch', 'transformers', 'torchao', 'numpy', 'wandb'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert segquant.load_quantized is load_quantized
