"""Models and artifacts that strangers made, with right digests: one line, before time or memory is taken."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import small_segformer
from safetensors.torch import load_file, save_file
from test_artifacts import sealed
from test_families import FAMILIES, SIZES, _config
from transformers import AutoModelForSemanticSegmentation, SegformerForSemanticSegmentation

from segquant import models
from segquant.base import skeleton
from segquant.base.config import Recipe
from segquant.base.errors import ModelError
from segquant.base.files import digest, write_json
from segquant.engines.load import load_quantized
from segquant.quant.artifacts import load_artifact
from segquant.quant.build import build

CPU = torch.device("cpu")


def status(key):
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]
    )


def refused(call, message):
    """`call` raises ModelError with `message` in one short line, in less than a second and 200 MB."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before, start = status("VmRSS"), time.process_time()
    with pytest.raises(ModelError, match=message) as caught:
        call()
    seconds, megabytes = time.process_time() - start, (status("VmHWM") - before) / 1024
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert seconds < 1 and megabytes < 200, (seconds, megabytes)


def change(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a float model, its artifacts by name of their weights, and a tiny model of each family."""
    root = tmp_path_factory.mktemp("hostile")
    models.save(small_segformer(3, stages=2), root / "float")
    for name, recipe in {
        "int8": Recipe("int8"),
        "int4": Recipe("int4", 16),
        "dynamic": Recipe("int8", activations="int8"),
    }.items():
        build(root / "float", recipe, root / name, CPU)
    build(root / "float", Recipe("int2", 8, "gptq"), root / "gptq", CPU, torch.zeros(1, 3, 32, 32))
    for name in ("beit", "upernet_swin", "dpt"):
        torch.manual_seed(0)
        models.save(AutoModelForSemanticSegmentation.from_config(FAMILIES[name]), root / name)
    models.load(root / "beit")  # what is imported once does not count
    return root


LARGER = "has a config.json of a far larger model than its weights: fetch both again"
NO_MODEL = "has a config.json that no model can be made from .*: fetch it again"
FLOATS = [
    ({"depths": [10**6, 1]}, "has 'depths' 1000000 in config.json: at most 100000 works"),
    ({"depths": [99_999, 1]}, LARGER),
    ({"depths": [9_999] * 1000}, "has 'depths' 9999000 in config.json"),
    ({"hidden_sizes": [50_000, 50_000]}, LARGER),
    ({"decoder_hidden_size": 99_999}, LARGER),
    ({"num_encoder_blocks": 10**9}, "has 'num_encoder_blocks' 1000000000"),
    ({"mlp_ratios": [1e9, 1e9]}, NO_MODEL + f"|{LARGER}"),
    ({"hidden_sizes": [1e308, 32]}, NO_MODEL),
    ({"hidden_sizes": "x" * 100_000}, NO_MODEL),
    ({"hidden_sizes": []}, NO_MODEL),
    ({"num_attention_heads": [0, 0]}, NO_MODEL),
    ({"strides": [0, 0]}, "does not run: .*(stride|zero).*; fetch it again, or choose another"),
    ({"strides": [-1, 2]}, "does not run: "),
    ({"id2label": {"0": 1, "1": "b", "2": "c"}}, "names a class 1 in its config.json: give it a text"),
    ({"id2label": None, "num_labels": 10**9}, "has 1000000000 classes: 1 to 255 work"),
    ({"backbone_config": {"num_labels": 10**9}}, "has 'num_labels' 1000000000"),
    ({"model_type": "mask2former"}, "is of the type 'mask2former': give a model for semantic segmentation"),
    ({"model_type": ["segformer"]}, "is of the type \\['segformer'\\], which transformers .* does not know"),
    ({"model_type": None}, "is of the type None, which transformers .* does not know"),
    ({"architectures": 5}, "is a 5: give a model for semantic segmentation"),
    ({"attn_implementation": "evil/kernel"}, "has attn_implementation 'evil/kernel' in config.json: remove it"),
    ({"_attn_implementation": "evil/kernel"}, "has _attn_implementation 'evil/kernel' in config.json: remove it"),
    ({"a": [{"_attn_implementation_internal": {"": "x"}}]}, "has _attn_implementation_internal {.*}.* in config.json"),
    ({"experts_implementation": "evil/kernel"}, "has experts_implementation 'evil/kernel' in config.json: remove it"),
    ({"transformers_weights": "other.safetensors"}, "has transformers_weights 'other.safetensors' in config.json: rem"),
    ({"note": "x" * (1 << 20)}, "has a config.json of .* bytes"),
]


@pytest.mark.parametrize(("keys", "message"), FLOATS)
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_config_that_no_weights_fit(kind, keys, message, built, tmp_path):
    folder = shutil.copytree(built / kind, tmp_path / "m")
    change(folder, **keys)
    if kind != "float":
        sealed(folder)
    refused(lambda: (models.load if kind == "float" else load_artifact)(folder), message)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("beit", {"num_hidden_layers": 10**9}, "has 'num_hidden_layers' 1000000000"),
        ("beit", {"num_hidden_layers": 99_999}, LARGER),
        ("beit", {"image_size": 90_000}, LARGER),
        ("beit", {"hidden_size": 99_999}, f"{NO_MODEL}|{LARGER}"),
        ("beit", {"hidden_size": 80_000}, LARGER),
        ("dpt", {"num_hidden_layers": 99_999}, LARGER),
        ("dpt", {"neck_hidden_sizes": [20_000] * 4, "image_size": 64}, LARGER),
        ("upernet_swin", {"pool_scales": [60_000, 1, 1, 1]}, "would give .* numbers in .* for one small image"),
        ("upernet_swin", {"hidden_size": 99_999}, LARGER),
    ],
)
def test_other_families(family, keys, message, built, tmp_path):
    folder = shutil.copytree(built / family, tmp_path / "m")
    models.load(folder)
    change(folder, **keys)
    refused(lambda: models.load(folder), message)


@pytest.mark.parametrize(
    "backbone",
    [
        {"depths": [10**6] * 4},
        {"depths": [20_000] * 4},
        {"embed_dim": 99_999},
        {"window_size": 9_999},
        5,
        {"model_type": "x"},
    ],
)
def test_a_backbone_that_no_weights_fit(backbone, built, tmp_path):
    folder = shutil.copytree(built / "upernet_swin", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    change(
        folder, backbone_config={**config["backbone_config"], **backbone} if isinstance(backbone, dict) else backbone
    )
    refused(lambda: models.load(folder), f"{LARGER}|{NO_MODEL}|in config.json: at most|does not fit its config.json")


@pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 50_000, "[]", "{", "\0", "1" * 5000])
@pytest.mark.parametrize("name", ["config.json", "quantization.json"])
def test_json_of_another_form(name, text, built, tmp_path):
    """load_quantized raised the base class, and a traceback where JSON is nested deeply."""
    folder = shutil.copytree(built / "int8", tmp_path / "m")
    (folder / name).write_text(text)
    if name == "config.json":
        sealed(folder)
    refused(lambda: load_quantized(folder), name)


def test_a_model_may_be_saved_as_a_pickle_of_tensors(built, tmp_path):
    folder = shutil.copytree(built / "float", tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    models.load(folder)
    change(folder, depths=[99_999, 1])
    refused(lambda: models.load(folder), LARGER)


def resealed(folder, **keys):
    """Change quantization.json, and make its digest right."""
    info = json.loads((folder / "quantization.json").read_text()) | keys
    info = {key: value for key, value in info.items() if value != "gone"}
    info.pop("digest")
    write_json(folder / "quantization.json", {**info, "digest": digest(info)})


WRITES = "as segquant writes it"
INFOS = [
    ({"recipe": {}}, f"no 'recipe' {WRITES} .recipe lacks the key 'weights'.: quantize again"),
    ({"recipe": {"weights": "int8"}}, f"no 'recipe' {WRITES} .recipe lacks the key 'group_size'."),
    ({"recipe": {"weights": "int7"}}, f"no 'recipe' {WRITES} .recipe.weights 'int7' is unknown"),
    ({"recipe": {"weights": ["int8"]}}, f"no 'recipe' {WRITES}"),
    ({"recipe": {"weights": "int8", "engine": "x" * 9999}}, f"no 'recipe' {WRITES}"),
    ({"recipe": {"weights": "int8", "layers": 5}}, f"no 'recipe' {WRITES}"),
    ({"files": ["config.json"]}, f"no 'files' {WRITES}"),
    ({"files": {"config.json": 5}}, "config.json is missing or not as it was written"),
    ({"parameters": 0}, "has counts of weights that no model has"),
    ({"parameters": "many"}, f"no 'parameters' {WRITES}"),
    ({"float32_bytes": None}, f"no 'float32_bytes' {WRITES}"),
    ({"float32_bytes": -1}, "has counts of weights that no model has"),
    ({"quantized_fraction": 3.5}, "has counts of weights that no model has"),
    ({"failed": {"a": 1}}, f"no 'failed' {WRITES}"),
    ({"linear_convs": [5]}, "cannot be loaded: .*; quantize again"),
    ({"linear_convs": ["decode_head.batch_norm"]}, "cannot be loaded: .*; quantize again"),
    ({"linear_convs": []}, "cannot be loaded: it .*; quantize again"),
    ({"tensors": {}}, "cannot be loaded: quantization.json does not list the tensors"),
    ({"tensors": {"tensor_names": "5"}}, "does not list the tensors that it describes"),
    ({"tensors": {"tensor_names": json.dumps(["a.b"] * 99_999)}}, "does not list the tensors that it describes"),
    ({"packed": {}}, "cannot be loaded: "),
    ({"packed": {"x": 5}}, "cannot be loaded: "),
]


@pytest.mark.parametrize(("keys", "message"), INFOS)
def test_a_quantization_json_that_segquant_does_not_write(keys, message, built, tmp_path):
    folder = shutil.copytree(built / "int8", tmp_path / "m")
    resealed(folder, **keys)
    refused(lambda: load_artifact(folder), message)


def entry(name, change):
    """A change of an entry of `tensors` or `packed`, the first whose name ends so."""

    def edit(info):
        place = info["packed"] if name.startswith("_weight_") else info["tensors"]
        key = next(key for key in place if key.endswith(name))
        value = json.loads(place[key]) if isinstance(place[key], str) else place[key]
        change(value)
        place[key] = json.dumps(value) if isinstance(place[key], str) else value

    return edit


ENTRIES = {
    "activation_quantization": (
        "int4",
        entry("proj.linear.weight", lambda e: e["_data"].update(activation_quantization="x")),
    ),
    "a class of torchao's": ("int4", entry("proj.linear.weight", lambda e: e.update(_type="MXTensor"))),
    "a class of PyTorch's": ("int4", entry("proj.linear.weight", lambda e: e.update(_type="UntypedStorage"))),
    "dtype": (
        "int8",
        entry("proj.linear.weight", lambda e: e["_data"].update(dtype={"_type": "torch.dtype", "_data": "load"})),
    ),
    "block_size": ("int8", entry("proj.linear.weight", lambda e: e["_data"].update(block_size=[1, 0]))),
    "parts": ("int8", entry("proj.linear.weight", lambda e: e.update(_tensor_data_names=None))),
    "act_quant_kwargs": (
        "dynamic",
        entry("proj.linear.weight", lambda e: e["_data"].update(act_quant_kwargs={"a": 1})),
    ),
    "zeros": ("int8", entry("_weight_zero_point", lambda e: e.update(zeros=[3 * 10**9]))),
    "negative zeros": ("int8", entry("_weight_zero_point", lambda e: e.update(zeros=[-32, -1]))),
    "zeros of text": ("int8", entry("_weight_zero_point", lambda e: e.update(zeros="x"))),
    "zeros of a type": ("int8", entry("_weight_zero_point", lambda e: e.update(dtype="load"))),
    "bits": ("int4", entry("_weight_qdata", lambda e: e.update(bits=10**9))),
    "bits of 0": ("int4", entry("_weight_qdata", lambda e: e.update(bits=0))),
    "steps for other codes": ("gptq", entry("_weight_zero_point", lambda e: e.update(of=3))),
    "steps of many bits": ("gptq", entry("_weight_zero_point", lambda e: e.update(steps=10**9))),
    "steps without their codes": ("gptq", entry("_weight_zero_point", lambda e: e.pop("of"))),
    "shares of no bits": ("gptq", entry("_weight_scale", lambda e: e.update(shares=0))),
    "shares of other rows": ("gptq", entry("_weight_scale", lambda e: e.update(shape=e["shape"][::-1]))),
    "a shape": ("int4", entry("_weight_qdata", lambda e: e.update(shape=[10**9, 10**9]))),
}


@pytest.mark.parametrize("kind", list(ENTRIES))
def test_an_entry_that_segquant_does_not_write(kind, built, tmp_path):
    name, edit = ENTRIES[kind]
    folder = shutil.copytree(built / name, tmp_path / "m")
    info = json.loads((folder / "quantization.json").read_text())
    edit(info)
    resealed(folder, **info)
    refused(lambda: load_artifact(folder), "(cannot be loaded|does not run): ")


TENSORS = {
    "a bias in float64": ("linear.bias", lambda t: t.double(), "bias as float64, which segquant does not write"),
    "a bias in whole numbers": ("linear.bias", lambda t: t.int(), "bias as int32, which segquant does not write"),
    "a bias of another size": ("linear.bias", lambda t: t.new_zeros(7), r"bias as \[7\], but config.json has"),
    "a scale of no number": ("_weight_scale", lambda t: t * float("nan"), "gives logits that are no numbers"),
    "a scale in float64": ("_weight_scale", lambda t: t.double(), "has scales of .* of float64, which segquant does"),
    "a scale of another size": ("_weight_scale", lambda t: t.new_ones(3), "has (other zeros in|scales of)"),
    "no bias": ("linear.bias", None, "lacks .*bias, which does not fit its config.json"),
}


@pytest.mark.parametrize("kind", list(TENSORS))
def test_tensors_that_segquant_does_not_write(kind, built, tmp_path):
    """Found in the first forward pass, or not at all."""
    end, edit, message = TENSORS[kind]
    folder = shutil.copytree(built / "int8", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith(end))
    if edit:
        tensors[key] = edit(tensors[key])
    else:
        del tensors[key]
        info = json.loads((folder / "quantization.json").read_text())
        names = [name for name in json.loads(info["tensors"]["tensor_names"]) if name != key]
        del info["tensors"][key]
        resealed(folder, tensors=info["tensors"] | {"tensor_names": json.dumps(names)})
    save_file(tensors, folder / "model.safetensors")
    sealed(folder)
    refused(lambda: load_artifact(folder), message)


def test_a_file_without_a_digest_is_not_read(built, tmp_path):
    """A preprocessor_config.json beside an artifact decided on its pixels."""
    folder = shutil.copytree(built / "int8", tmp_path / "m")
    files = json.loads((folder / "quantization.json").read_text())["files"]
    for name in ("preprocessor_config.json", "model.safetensors"):
        resealed(folder, files={key: value for key, value in files.items() if key != name})
        refused(lambda name=name: load_artifact(folder), f"{name} has no digest in quantization.json: remove it")
    resealed(folder, files=files)
    (folder / "processor_config.json").write_text("{}")
    refused(lambda: load_artifact(folder), "processor_config.json has no digest in quantization.json")


def header(path, edit):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.dumps(edit(json.loads(data[8 : 8 + size]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def first(**keys):
    def edit(entries):
        name = next(name for name in entries if name.endswith("weight"))
        return entries | {name: entries[name] | keys}

    return edit


HEADERS = {
    "dtype": first(dtype="F99"),
    "dtype of another size": first(dtype="F64"),
    "whole numbers": first(dtype="I32"),
    "shape": first(shape=[10**6, 10**6]),
    "overflowing shape": first(shape=[2**40, 2**40]),
    "negative shape": first(shape=[-1]),
    "offsets": first(data_offsets=[0, 10**12]),
    "backward offsets": first(data_offsets=[100, 0]),
    "text": lambda entries: {"a": "x"},
    "list": lambda entries: [],
    "nothing": lambda entries: {},
}


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("name", list(HEADERS))
def test_headers_of_safetensors(name, kind, built, tmp_path):
    folder = shutil.copytree(built / kind, tmp_path / "m")
    header(folder / "model.safetensors", HEADERS[name])
    if kind != "float":
        sealed(folder)
    message = "cannot be loaded|only float weights work|does not fit its config.json|far larger model"
    refused(lambda: (models.load if kind == "float" else load_artifact)(folder), message)


def test_the_forward_pass_changes_nothing_and_takes_no_time(built, tmp_path):
    """Its seconds on a SegFormer-B0; no random state, no statistics, no gradient."""
    torch.manual_seed(3)
    models.save(models.new_segformer_b0([f"c{i}" for i in range(150)]), tmp_path / "b0")
    state = torch.get_rng_state()
    model = models.load(tmp_path / "b0")
    assert torch.equal(torch.get_rng_state(), state)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    times = []
    for _ in range(5):
        start = time.process_time()
        models.check_runs("m", model)
        times.append(time.process_time() - start)
    assert min(times) < 0.1, times
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    build(tmp_path / "b0", Recipe("int8"), tmp_path / "a", CPU)
    state = torch.get_rng_state()
    load_artifact(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_seconds_do_not_count_the_forward_pass(built, monkeypatch):
    from segquant.quant import artifacts

    monkeypatch.setattr(artifacts, "check_runs", lambda *_: time.sleep(2))
    assert load_artifact(built / "int8").load_seconds < 2


@pytest.mark.parametrize("size", list(SIZES))
def test_no_size_of_segformer_is_run_on_the_meta_device(size, built, tmp_path, monkeypatch):
    """It takes half a second of each load; only numbers that no weight has are tried so."""
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(_config(size))
    model.config.architectures, model.config.image_size = ["SegformerForSemanticSegmentation"], 224
    model.config.save_pretrained(tmp_path)
    tensors = {name: skeleton.Stored("F32", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(skeleton, "_check_outputs", lambda *_: pytest.fail("the meta device"))
    empty = skeleton.skeleton("m", tmp_path, tensors)
    assert empty.state_dict().keys() == tensors.keys()
