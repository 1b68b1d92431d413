"""Quantize every size of SegFormer, and other model families of transformers."""

import io
import signal
import time

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from test_artifacts import METHODS
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DPTConfig,
    MobileNetV2Config,
    MobileViTConfig,
    MobileViTV2Config,
    SegformerConfig,
    SwinConfig,
    UperNetConfig,
)

from segquant import models
from segquant.base.classes import ADE20K
from segquant.base.config import Eval, Graph, Recipe
from segquant.base.errors import ModelError
from segquant.base.failures import failure
from segquant.base.files import read_json
from segquant.data.preprocessing import read_preprocessing
from segquant.data.protocols import model_input
from segquant.data.rows import rows
from segquant.data.shards import open_shards, write_shards
from segquant.data.sources import open_source
from segquant.deploy import graph
from segquant.deploy.build import build_graph
from segquant.deploy.onnx_export import write_exports
from segquant.engines.load import load
from segquant.evaluation.predict import predict, prepared
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import score
from segquant.quant.artifacts import describe_artifact, load_artifact, load_quantized
from segquant.quant.build import build
from segquant.quant.coverage import choose
from segquant.quant.tensors import is_quantized

CPU, PROTOCOL = torch.device("cpu"), "fixed-64x64-v1"

# size -> depths, hidden sizes, decoder size (E. Xie et al., SegFormer, 2021, table 7)
SIZES = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512], 256),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], 768),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512], 768),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512], 768),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512], 768),
}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 150,
}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_UPERNET = {"hidden_size": 16, "auxiliary_in_channels": 32, "auxiliary_channels": 8, "num_labels": 150}
FAMILIES = {
    "beit": BeitConfig(**_VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True),
    "data2vec": Data2VecVisionConfig(**_VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True),
    "dpt": DPTConfig(
        **_VIT, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32], fusion_hidden_size=32
    ),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=150),
    "mobilevit": MobileViTConfig(
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[8, 16, 16, 24, 32, 40, 64],
        num_attention_heads=4,
        aspp_out_channels=32,
        image_size=64,
        num_labels=150,
    ),
    "mobilevit_v2": MobileViTV2Config(width_multiplier=0.25, image_size=64, aspp_out_channels=32, num_labels=150),
    "upernet_convnext": UperNetConfig(
        backbone_config=ConvNextConfig(hidden_sizes=[8, 16, 32, 32], depths=[1] * 4, out_features=_STAGES), **_UPERNET
    ),
    "upernet_swin": UperNetConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=4, out_features=_STAGES
        ),
        **_UPERNET,
    ),
}
PROCESSORS = {
    "beit": "Beit",
    "data2vec": "Beit",
    "dpt": "DPT",
    "mobilenet_v2": "MobileNetV2",
    "mobilevit": "MobileViT",
    "mobilevit_v2": "MobileViT",
    "upernet_convnext": "Segformer",
    "upernet_swin": "Segformer",
}
RECIPES = {
    "int8": Recipe("int8"),
    "int4": Recipe("int4", 16, "hqq"),
    "int2": Recipe("int2", 8, "hqq"),
    "gptq": Recipe("int2", 8, "gptq"),
}


def _config(size):
    depths, hidden, decoder = SIZES[size]
    return SegformerConfig(
        depths=depths,
        hidden_sizes=hidden,
        num_attention_heads=[1, 2, 5, 8],
        decoder_hidden_size=decoder,
        num_labels=150,
    )


@pytest.mark.parametrize("size", list(SIZES))
def test_layers_all_covers_every_size_of_segformer(size):
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(_config(size))
    names = choose(model, "all")
    depths = SIZES[size][0]
    assert sum(name.endswith("mlp.fc1") for name in names) == sum(depths)
    covered = sum(model.get_submodule(name).weight.numel() for name in names)
    assert covered / sum(p.numel() for p in model.parameters()) > 0.985


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards({"validation": open_source("scenes", "validation", 2)}, folder)
    return open_shards(folder, "validation")


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """The folder of a small model whose weights are random, and whose normalizations have seen some scenes."""
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(FAMILIES[request.param])
    for parameter in model.parameters():
        if parameter.ndim in (2, 4):  # with the small initial weights, the output would not depend on the image
            nn.init.kaiming_normal_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
    with torch.no_grad():
        model.train()(scenes(8))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # of eight pooled images some vary by next to nothing
                module.running_var.clamp_(min=float(module.running_var.mean()))
        logits = model.eval()(scenes()).logits
    named = {name: m for name, m in model.named_modules() if not name.startswith("auxiliary")}
    (last,) = (m for m in named.values() if isinstance(m, nn.Conv2d) and m.out_channels == logits.shape[1])
    last.bias.data -= logits.mean((0, 2, 3))  # else one class would win everywhere
    folder = tmp_path_factory.mktemp(request.param)
    models.save(model, folder / "m")
    processor = getattr(transformers, f"{PROCESSORS[request.param]}ImageProcessorPil")()
    processor.save_pretrained(folder / "m")
    return folder / "m"


@pytest.fixture(scope="module")
def reference(family, shards, tmp_path_factory):
    """What float32 predicts."""
    folder = tmp_path_factory.mktemp("reference")
    options = {"protocol": PROTOCOL, "settings": Eval(pictures=0), "partial": folder / "partial"}
    write_reference(family, shards, folder / "reference", **options)
    return folder / "reference"


def scenes(count=2):
    """Model inputs (count, 3, 64, 64)."""
    return torch.stack(
        [model_input(picture(row), PROTOCOL) for row in rows(open_source("scenes", "validation", count))]
    )


def picture(row):
    return Image.open(io.BytesIO(row["image"])).convert("RGB")


def own_pixels(family, row):
    """A row's image as transformers' processor of the model's own class makes it, at the protocol's size."""
    processor = transformers.AutoImageProcessor.from_pretrained(family, backend="pil")
    for step in ("do_center_crop", "do_pad"):  # a DPT's and a BEiT's sizes are the protocol's too
        if hasattr(processor, step):
            setattr(processor, step, False)
    return processor(picture(row), size={"height": 64, "width": 64}, return_tensors="pt")["pixel_values"]


def dequantized(family, artifact):
    """transformers' own model with the numbers that an artifact's codes stand for."""
    plain, quantized = AutoModelForSemanticSegmentation.from_pretrained(family).eval(), load_artifact(artifact).model
    state = {name.replace(".linear.bias", ".bias"): tensor for name, tensor in quantized.state_dict().items()}
    plain.load_state_dict({name: tensor for name, tensor in state.items() if not is_quantized(tensor)}, strict=False)
    for name in describe_artifact(artifact)["modules"]:
        weight = plain.get_submodule(name).weight
        weight.data = quantized.get_submodule(name).weight.dequantize().view_as(weight)
    return plain


def test_float32s_class_maps_equal_those_of_plain_transformers(family, tmp_path):
    build(family, Recipe("float32"), tmp_path / "a", CPU)
    plain = AutoModelForSemanticSegmentation.from_pretrained(family).eval()
    scenes = list(rows(open_source("scenes", "validation", 2)))
    model = load(tmp_path / "a").model
    assert {tensor.data_ptr() % 64 for tensor in model.state_dict().values()} == {0}  # wherever the file has them
    model = prepared(model, Eval())
    seen = set()
    preprocessing = read_preprocessing(tmp_path / "a")
    for prediction in predict(model, scenes, PROTOCOL, Eval(batch_size=1), preprocessing):
        size = prediction.row["height"], prediction.row["width"]
        with torch.inference_mode():
            logits = plain(own_pixels(family, prediction.row)).logits
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)[0]
        assert (prediction.classes == expected).float().mean() > 0.9999  # two logits may be equal but for rounding
        seen |= set(expected.unique().tolist())
    assert len(seen) > 3  # the maps say something


@pytest.mark.parametrize("name", ["int8", "int4", "int2", pytest.param("gptq", marks=pytest.mark.slow)])
def test_other_families_are_quantized_reload_and_are_evaluated(family, name, shards, reference, tmp_path):
    images = scenes()
    build(family, RECIPES[name], tmp_path / "a", CPU, images)  # checks that the artifact reloads bit for bit
    assert describe_artifact(tmp_path / "a")["quantized_fraction"] > 0.75
    with torch.inference_mode():
        expected, actual = (
            dequantized(family, tmp_path / "a")(images).logits,
            load_quantized(tmp_path / "a")(images).logits,
        )
    assert ((expected - actual).norm() / (expected - expected.mean()).norm()).item() < 1e-3
    options = {"reference": reference, "label_map": None, "partial": tmp_path / "partial"}
    metrics, _ = score(tmp_path / "a", shards, ADE20K, protocol=PROTOCOL, settings=Eval(pictures=0), **options)
    assert metrics["n_images"] == 2 and 0 <= metrics["agreement"] <= 1 and 0 <= metrics["mean_iou"] <= 1


def test_the_last_bits_of_a_matrix_times_a_vector_depend_on_alignment_and_not_once_aligned():
    from segquant.base.allocator import align

    conv = nn.Conv2d(64, 16, 1).requires_grad_(False)
    image = torch.randn(1, 64, 1, 1, generator=torch.Generator().manual_seed(0))
    weight, expected = conv.weight.clone(), conv(image)
    for shift in range(1, 16):
        room = torch.empty(weight.numel() + 16)
        start = (-room.data_ptr() // 4) % 16 + shift
        conv.weight.data = room[start : start + weight.numel()].view_as(weight).copy_(weight)
        assert torch.allclose(conv(image), expected, atol=1e-5)
        assert torch.equal(align(conv)(image), expected)


@pytest.mark.slow
def test_a_graph_works_or_says_why_not_in_one_line(family, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_LONGEST", 60)  # seconds
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_exports(family, tmp_path / "onnx")
    summary, images = read_json(tmp_path / "onnx" / "export.json"), scenes()
    reasons = [part["failed"] for part in (summary, *summary.values()) if isinstance(part, dict) and "failed" in part]
    for recipe in (
        Graph(engine="onnxruntime", weights="float32"),
        Graph(engine="onnxruntime", weights="int8", algorithm="qdq"),
    ):
        try:
            times = build_graph(family, recipe, tmp_path / "a", tmp_path / "onnx", images)
        except Exception as error:  # as a lane does
            reasons.append(failure(recipe.algorithm, error)["failed"])
            continue
        if "failed" in summary or "failed" in summary["float32"]:
            assert times["failed"] in reasons
        else:
            logits = load(tmp_path / "a").model(images).logits
            assert logits.isfinite().all() and times["seconds"] > 0
    assert not list((tmp_path / "here").iterdir())
    assert all(reason and "\n" not in reason and "Traceback" not in reason for reason in reasons)


def test_an_export_without_an_end_is_stopped(monkeypatch):
    monkeypatch.setattr(graph, "_LONGEST", 0.05)
    monkeypatch.setattr(graph.torch.export, "export", lambda *_, **__: [None for _ in iter(int, 1)])
    with pytest.raises(ModelError, match="torch.export has not exported this model for any size within 0.05 seconds"):
        graph.exported(nn.Identity())


def test_the_limit_of_an_export_leaves_the_callers_alarm_and_handler(monkeypatch):
    monkeypatch.setattr(graph, "_LONGEST", 0.05)

    def never_ends(*_, **__):
        class Cleared:
            def __del__(self):
                time.sleep(0.2)  # the first alarm comes here, where Python drops what is raised

        Cleared()
        return [None for _ in iter(int, 1)]

    monkeypatch.setattr(graph.torch.export, "export", never_ends)
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append("the caller's"))
    signal.setitimer(signal.ITIMER_REAL, 50)
    try:
        with pytest.raises(ModelError, match="has not exported this model"):
            graph.exported(nn.Identity())
        assert 40 < signal.getitimer(signal.ITIMER_REAL)[0] < 50
        signal.raise_signal(signal.SIGALRM)
        assert heard == ["the caller's"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["b0", "b2"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_fresh_process_gives_bit_identical_logits(size, method, tmp_path):
    from test_artifacts import check_fresh_process

    torch.manual_seed(0)
    models.save(AutoModelForSemanticSegmentation.from_config(_config(size)).eval(), tmp_path / "m")
    check_fresh_process(tmp_path / "m", METHODS[method], tmp_path)
