import dataclasses
import json
import shutil
import subprocess
import sys
from functools import cache

import pytest
import torch
from conftest import ROOT, small_segformer
from safetensors.torch import load_file, save_file

import segquant
from segquant import models
from segquant.base import config
from segquant.base.config import Calibration, Override, Recipe, SmallLayers
from segquant.base.errors import ConfigError, ModelError, SegquantError, UnavailableError
from segquant.base.files import digest, sha256, write_json
from segquant.engines import load as engines
from segquant.quant import calibrate, fit
from segquant.quant.artifacts import describe_artifact, load_artifact, load_quantized
from segquant.quant.build import build
from segquant.quant.codes import nearest
from segquant.quant.describe import describe
from segquant.quant.recipes import plan, quantize, unavailable

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(2)).cumsum(2) / 4
METHODS = {
    name: recipe
    for name, recipe in {
        **config.load(ROOT / "params.yaml").quant.methods,
        "int3": Recipe("int3", 32, "gptq"),
        "int4_dynamic": Recipe("int4", 32, "hqq", "int8"),
        "int4_affine": Recipe("int4", 16, "affine"),
        "int2_per_row": Recipe("int2", None, "affine"),
        "int2_hqq": Recipe("int2", 32, "hqq"),
        "int2_linear": Recipe("int2", 32, "hqq", layers="linear"),
        "int3_gptq_dynamic": Recipe("int3", 32, "gptq", "int8"),
        "int8_gptq_per_row": Recipe("int8", None, "gptq"),
        "mixed": Recipe(
            "int2", 32, "gptq", overrides={"decode_head.*": Override("int8"), "*.q_proj": Override("float8")}
        ),
        "small": Recipe("int2", 32, "gptq", small_layers=SmallLayers(1024, 8, 4)),
        "patterns": Recipe("int4", 16, "hqq", layers=("decode_head.*", "*.fc?")),
    }.items()
    if isinstance(recipe, Recipe)
    and unavailable(recipe, CPU) is None
    and not recipe.train  # tests/training/test_qat.py
}


def _logits(model):
    noise = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(noise.to(next(model.parameters()).dtype)).logits


@pytest.fixture
def tiny():
    return small_segformer(stages=2)  # the B0 below has all four


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A function that returns the folder of a method's artifact of the tiny model, built once; tests only read it."""
    folder = tmp_path_factory.mktemp("built")
    models.save(small_segformer(stages=2), folder / "tiny")

    @cache
    def artifact(method):
        assert "seconds" in build(folder / "tiny", METHODS[method], folder / method, CPU, IMAGES)
        return folder / method

    return artifact


@pytest.mark.parametrize("method", list(METHODS))
def test_an_artifact_reloads_to_bit_identical_logits(method, built, tiny_folder):
    model = models.load(tiny_folder)
    quantize(model, METHODS[method], CPU, IMAGES)
    assert torch.equal(_logits(model), _logits(load_quantized(built(method))))


@pytest.mark.parametrize("method", ["float8", "int8", "int8_dynamic", "int4", "int3", "int2"])
def test_a_quantized_model_is_close_to_float32_but_not_equal(method, built, tiny_folder):
    expected, actual = _logits(models.load(tiny_folder)), _logits(load_quantized(built(method)))
    error = ((expected - actual).norm() / expected.norm()).item()
    limits = {"float8": 0.1, "int8": 0.03, "int8_dynamic": 0.05, "int4": 0.25, "int3": 0.5, "int2": 1.0}
    assert 0 < error < limits[method]


def check_fresh_process(baseline, recipe, tmp_path):
    """The artifact's logits in a fresh process equal those of this process, bit for bit."""
    build(baseline, recipe, tmp_path / "a", CPU, IMAGES)
    torch.save(_logits(load_quantized(tmp_path / "a")), tmp_path / "logits.pt")
    script = (
        "import sys, torch, segquant; sys.path[:0] = sys.argv[3:]; from test_artifacts import _logits\n"
        "assert torch.equal(_logits(segquant.load_quantized(sys.argv[1])), torch.load(sys.argv[2], weights_only=True))"
    )
    arguments = [tmp_path / "a", tmp_path / "logits.pt", ROOT / "tests", ROOT / "tests" / "quant"]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)


def test_a_fresh_process_gives_the_same_logits(tiny_folder, tmp_path):
    check_fresh_process(tiny_folder, METHODS["int3"], tmp_path)


def test_codes_are_stored_at_their_true_width_and_floats_as_float16(built, tiny_folder):
    original = models.load(tiny_folder).state_dict()
    for method, bits in {"int8": 8, "int4": 4, "int3": 3, "small": 2}.items():
        tensors = load_file(built(method) / "model.safetensors")
        info = describe_artifact(built(method))
        assert len(info["modules"]) > 20
        for name, entry in info["modules"].items():
            stored = name + ".linear" if name in info["linear_convs"] else name
            weights = original[f"{name}.weight"].numel()
            width = 4 if method == "small" and weights <= 1024 else bits
            width = 8 if name.endswith("dwconv.dwconv") else width
            assert tensors[f"{stored}._weight_qdata"].nbytes == -(-weights * width // 8)
            assert (entry["bits"], entry["parameters"]) == (width, weights)
            parts = [v.nbytes for k, v in tensors.items() if k.startswith(f"{stored}._weight_")]
            assert entry["bytes"] == sum(parts)
            assert tensors[f"{stored}._weight_scale"].dtype == torch.float16
            rows, groups = len(original[f"{name}.weight"]), weights // entry["group_size"]
            assert len(tensors[f"{stored}._weight_scale"]) == rows
            if f"{stored}._weight_scale_shares" in tensors:  # gptq's, of 6 bits: one scale a row, and shares of it
                assert tensors[f"{stored}._weight_scale"].numel() == rows
                assert tensors[f"{stored}._weight_scale_shares"].nbytes <= -(-groups * 6 // 8)
                assert tensors[f"{stored}._weight_zero_point"].nbytes <= -(-groups * 6 // 8)
            else:
                assert tensors[f"{stored}._weight_scale"].numel() == groups
        wide = {k for k, v in tensors.items() if v.dtype == torch.float32}
        assert all(k.endswith("fc2.bias") for k in wide), wide  # random values, too small for float16


@pytest.mark.parametrize("method", list(METHODS))
def test_the_bytes_of_modules_and_rest_add_up_to_the_file_without_its_header(method, built):
    data = (built(method) / "model.safetensors").read_bytes()
    info = describe_artifact(built(method))
    assert info["bytes"]["total"] == len(data) - 8 - int.from_bytes(data[:8], "little")
    assert info["bytes"]["quantized"] == sum(module["bytes"] for module in info["modules"].values())


def test_each_layer_gets_what_the_recipe_and_its_overrides_say(built):
    modules = describe_artifact(built("mixed"))["modules"]
    for name, entry in modules.items():
        expected = 8 if name.startswith("decode_head.") or name.endswith((".q_proj", "dwconv.dwconv")) else 2
        assert entry["bits"] == expected, name
        assert (entry["scheme"] == "Float8Tensor") == name.endswith(".q_proj")
    small = describe_artifact(built("small"))["modules"]
    dense = {name: entry for name, entry in small.items() if not name.endswith("dwconv.dwconv")}
    assert {(entry["bits"], entry["group_size"]) for entry in dense.values()} == {(2, 21), (2, 32), (4, 8)}
    for name, entry in dense.items():
        assert (entry["bits"] == 4) == (entry["parameters"] <= 1024), name
    patterns = describe_artifact(built("patterns"))["modules"]
    assert all("decode_head." in name or ".fc" in name for name in patterns)


def test_an_override_changes_what_a_layer_has_by_its_size(tiny):
    recipe = Recipe("int2", 32, "hqq", small_layers=SmallLayers(1024, 8, 4))
    before = plan(tiny, recipe).layers
    assert {layer[:2] for layer in before.values()} == {("int2", 21), ("int2", 32), ("int4", 8)}
    overrides = {"*": Override("int8"), "decode_head.*": Override(algorithm="affine"), "*.fc1": Override("float8")}
    after = plan(tiny, dataclasses.replace(recipe, overrides=overrides)).layers
    for name, layer in after.items():
        if name.startswith("decode_head."):
            assert layer == before[name]._replace(algorithm="affine"), name
        elif name.endswith(".fc1"):
            assert layer == ("float8", None, "affine"), name
        else:
            assert layer == before[name]._replace(weights="int8"), name


def test_the_words_say_what_small_layers_and_their_ranges_have():
    recipe = Recipe("int2", 32, "gptq", small_layers=SmallLayers(20000, 8), calibration=Calibration(4))
    groups = "int2 weights of all Linear and Conv2d layers (gptq on 4 images, groups of 32, "
    for bits, words in {
        None: "of 8 in layers of up to 20,000 weights, with scales of 6 and zeros of 6 bits)",
        4: "4 bits in groups of 8 in layers of up to 20,000 weights, with scales of 6 and zeros of 6 bits)",
        8: "8 bits in groups of 8 in layers of up to 20,000 weights, with scales of 6 and zeros of 6 bits below 8 bits)",
    }.items():
        changed = dataclasses.replace(recipe, small_layers=SmallLayers(20000, 8, bits))
        assert describe(changed) == f"{groups}{words}, float32 activations"
    wide = Recipe("int8", algorithm="gptq", small_layers=SmallLayers(20000, 8, 4))
    assert "with scales of 6 and zeros of 6 bits below 8 bits)" in describe(wide)
    assert "float8 weights" in describe(Recipe("float8", algorithm="gptq"))  # `segquant methods` lists what it refuses


@pytest.fixture(scope="module")
def b0(tmp_path_factory):
    """A random SegFormer-B0 with 150 classes."""
    folder = tmp_path_factory.mktemp("b0") / "b0"
    torch.manual_seed(0)
    models.save(models.new_segformer_b0([f"c{i}" for i in range(150)]), folder)
    return folder


def test_the_counts_of_segformer_b0_are_the_published_ones(b0, tmp_path):
    """Shares of 3,752,694 parameters: 52 Linear layers 65.33 %, with 12 dense convolutions 98.70 %, all 99.89 %."""
    model = models.load(b0)
    assert sum(p.numel() for p in model.parameters()) == 3_752_694
    for layers, count, share in (("linear", 52, 0.6533), ("all", 72, 0.9870)):
        build(b0, Recipe("int4", 32, "hqq", layers=layers), tmp_path / layers, CPU)
        info = describe_artifact(tmp_path / layers)
        assert len(info["modules"]) == count
        weights = {name: model.get_submodule(name).weight.numel() for name in info["modules"]}
        assert info["quantized_fraction"] == sum(weights.values()) / 3_752_694
        dense = [model.get_submodule(name) for name in weights if not name.endswith("dwconv.dwconv")]
        assert sum(p.numel() for m in dense for p in m.parameters()) / 3_752_694 == pytest.approx(share, abs=1e-4)
    assert info["quantized_fraction"] > 0.985
    assert info["modules"]["segformer.stages.0.patch_embeddings.proj"]["group_size"] == 21  # of 7 * 7 * 3 inputs


def test_a_b0_is_as_small_as_its_bits(b0, tmp_path, monkeypatch):
    """By rounding to nearest: what GPTQ does beyond it takes long, and does not change the size."""

    def rounded(weight, hessian, grid, **_):
        return nearest(weight, *fit.search(weight, hessian.diagonal(), grid), grid.bits)

    monkeypatch.setattr(calibrate, "quantize_weight", rounded)
    sizes = {"int8": 4.3, "int4": 2.20, "int3": 1.75, "int2": 1.34}  # MB, of float32's 15.04
    for method, most in sizes.items():
        recipe = dataclasses.replace(METHODS[method], algorithm="affine" if method == "int8" else "gptq")
        build(b0, recipe, tmp_path / method, CPU, IMAGES[:1])
        size = (tmp_path / method / "model.safetensors").stat().st_size / 1e6
        print(f"{method}: {size:.3f} MB")
        assert size <= most


def test_building_twice_gives_the_same_bytes(tiny_folder, tmp_path):
    for name in ("a", "b"):
        build(tiny_folder, METHODS["int2"], tmp_path / name, CPU, IMAGES)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors", "preprocessor_config.json", "quantization.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_all_files_have_the_same_permissions(tiny_folder, tmp_path):
    build(tiny_folder, METHODS["int8"], tmp_path / "out", CPU)
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


def test_the_compression_of_float32_is_1(tiny_folder, tmp_path):
    build(tiny_folder, METHODS["float32"], tmp_path / "a", CPU)
    artifact = load_artifact(tmp_path / "a")
    assert abs(artifact.info["float32_bytes"] / artifact.size_bytes - 1) < 1e-3


def test_an_unavailable_method_gives_its_reason_and_is_never_replaced(tiny_folder, tmp_path):
    recipe = Recipe("float8", activations="float8")
    reason = unavailable(recipe, CPU)
    assert "8.9" in reason
    assert build(tiny_folder, recipe, tmp_path / "a", CPU) == {"unavailable": reason}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["quantization.json"]
    with pytest.raises(UnavailableError, match="8.9"):
        load_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("int4", 11), "group_size 11 divides the inputs of no layer"),
        (
            Recipe("int4", 32, "hqq", ranges="float16"),
            "ranges are fitted by algorithm gptq: choose it, or leave ranges",
        ),
        (Recipe("float8", 32), "one scale per row: leave group_size and algorithm out"),
        (
            Recipe("float8", small_layers=SmallLayers(1024, 8)),
            "small_layers: float8 weights have one scale per row: give",
        ),
        (Recipe("float8", algorithm="gptq"), "gptq does not support float8 weights: choose"),
        (Recipe("int4", 32, "gptq"), "calibrates on images of the train split, but there are none"),
        (Recipe("int4", layers=("decode_head.*", "encoder.*")), "layers has 'encoder.\\*', which matches none of the"),
        (Recipe("int4", overrides={"*.fc1": Override()}), "overrides has '\\*.fc1' without keys"),
        (Recipe("int4", overrides={"*.dwconv.dwconv": Override("int8")}), "none of the 19 available layers"),
        (Recipe("int4", overrides={"head": Override("int8")}), "overrides has 'head', which matches none of the"),
        (Recipe("int4", overrides={"*fc1": Override(group_size=11)}), "group_size 11 divides the inputs of no layer"),
        (Recipe("float32", activations="int8"), "is a plain cast"),
        (Recipe("bfloat16", algorithm="hqq"), "is a plain cast"),
        (Recipe("int4", 32, activations="float8"), "no method has int4 weights with float8 activations"),
    ],
)
def test_an_unsupported_recipe_raises_one_line(recipe, message, tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(tiny_folder, recipe, tmp_path / "a", CPU)
    assert not (tmp_path / "a").exists()


@pytest.fixture
def artifact(built, tmp_path):
    return shutil.copytree(built("int4"), tmp_path / "a")


def test_broken_artifacts_raise_one_line(artifact, tmp_path):
    path = artifact / "quantization.json"
    info = json.loads(path.read_text())
    for broken in ("{", "[]", json.dumps({**info, "format": "x"}), json.dumps({**info, "parameters": 1})):
        path.write_text(broken)
        with pytest.raises(SegquantError) as error:
            load_artifact(artifact)
        assert "\n" not in str(error.value) and "quantization.json" in str(error.value)
    with pytest.raises(ModelError, match="it has no quantization.json"):
        load_artifact(tmp_path / "nothing")


@pytest.mark.parametrize("key", ["recipe", "files", "linear_convs", "modules", "packed", "tensors"])
@pytest.mark.parametrize("value", [None, 5, "gone"])
def test_an_artifact_of_another_form_is_one_line_though_its_digest_is_right(artifact, key, value):
    path = artifact / "quantization.json"
    info = json.loads(path.read_text()) | {key: value}
    if value == "gone":
        del info[key]
    del info["digest"]
    write_json(path, {**info, "digest": digest(info)})
    with pytest.raises(ModelError, match=f"quantization.json has no '{key}' as segquant writes it: quantize again"):
        load_artifact(artifact)


def test_a_loaded_model_takes_the_pixels_of_an_image_processor(tiny_folder, tmp_path):
    """They are float32; a model in bfloat16 refused them."""
    build(tiny_folder, Recipe("bfloat16"), tmp_path / "a", CPU)
    pixels = torch.randn(1, 3, 64, 64)
    model = load_quantized(tmp_path / "a")
    with torch.inference_mode():
        expected = load_artifact(tmp_path / "a").model(pixels.bfloat16()).logits
        for call in (lambda: model(pixels), lambda: model(pixel_values=pixels), lambda: model(pixels.bfloat16())):
            assert torch.equal(call().logits, expected)
    assert torch.equal(engines.load_quantized(tmp_path / "a")(pixels).logits, expected)


def sealed(artifact):
    """Make the digests of a changed artifact right again."""
    info = json.loads((artifact / "quantization.json").read_text())
    del info["digest"]
    info["files"] = {name: sha256(artifact / name) for name in info["files"]}
    write_json(artifact / "quantization.json", {**info, "digest": digest(info)})


def test_codes_of_another_type_and_names_that_stand_twice_are_one_line(built, tmp_path):
    artifact = shutil.copytree(built("int8"), tmp_path / "codes")
    tensors = load_file(artifact / "model.safetensors")
    key = next(key for key in tensors if key.endswith("_qdata"))
    save_file({**tensors, key: tensors[key].to(torch.int16)}, artifact / "model.safetensors")
    sealed(artifact)
    with pytest.raises(ModelError, match="has codes of .* as int16; quantize again"):
        load_artifact(artifact)
    artifact = shutil.copytree(built("int4"), tmp_path / "names")
    config = json.loads((artifact / "config.json").read_text())
    config["id2label"]["1"] = config["id2label"]["0"]
    write_json(artifact / "config.json", config)
    sealed(artifact)
    with pytest.raises(ModelError, match="names two classes 'LABEL_0'"):
        load_artifact(artifact)
    write_json(artifact / "config.json", {**config, "id2label": None, "num_labels": 10**9})
    sealed(artifact)
    with pytest.raises(ModelError, match="has 1000000000 classes: 1 to 255 work"):  # 5.5 GB and 47 s before
        load_artifact(artifact)


def test_more_zeros_than_weights_are_one_line(built, tmp_path):
    """They took 2.9 GB before a word was said."""
    artifact = shutil.copytree(built("int8"), tmp_path / "a")
    info = json.loads((artifact / "quantization.json").read_text())
    key = next(key for key, entry in info["packed"].items() if "zeros" in entry)
    info["packed"][key]["zeros"] = [3 * 10**9]
    write_json(artifact / "quantization.json", info)
    sealed(artifact)
    with pytest.raises(ModelError, match=f"has other zeros in {key} than the weights have scales; quantize again"):
        load_artifact(artifact)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named_and_never_loaded(artifact, name, damage):
    path = artifact / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(ModelError, match=rf"{name} is missing or not as it was written: quantize again"):
        load_artifact(artifact)


def test_broken_baselines_raise_one_line(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="needs config.json and model.safetensors"):
        models.load(tmp_path / "none")
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        models.load(tiny_folder)
    assert "\n" not in str(error.value)


def test_importing_segquant_imports_nothing_heavy():
    script = (
        "import sys, segquant; heavy = {'torch', 'transformers', 'torchao', 'numpy', 'wandb'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert segquant.load_quantized is engines.load_quantized
