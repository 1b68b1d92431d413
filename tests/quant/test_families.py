"""Quantize every size of SegFormer, and other model families of transformers."""

import pytest
import torch
from test_artifacts import METHODS
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    DPTConfig,
    MobileNetV2Config,
    MobileViTConfig,
    SegformerConfig,
    Swinv2Config,
    UperNetConfig,
)

from segquant import models
from segquant.base.config import Recipe
from segquant.quant.artifacts import describe_artifact, load_quantized
from segquant.quant.build import build
from segquant.quant.coverage import choose

# size -> depths, hidden sizes, decoder size (E. Xie et al., SegFormer, 2021, table 7)
SIZES = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512], 256),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], 768),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512], 768),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512], 768),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512], 768),
}
OTHERS = {
    "mobilevit": MobileViTConfig(
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[8, 16, 16, 24, 32, 40, 64],
        num_attention_heads=4,
        aspp_out_channels=32,
        num_labels=7,
    ),
    "dpt": DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=32,
        num_labels=7,
    ),
    "beit": BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
        num_labels=7,
        use_relative_position_bias=True,
    ),
    "upernet": UperNetConfig(  # the outputs of a few layers do not depend on the image
        backbone_config=Swinv2Config(
            image_size=64,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 4, 8],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=32,
        auxiliary_in_channels=64,
        auxiliary_channels=16,
        num_labels=7,
    ),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=7),
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


@pytest.mark.parametrize("family", list(OTHERS))
@pytest.mark.parametrize(
    "recipe", [Recipe("int8"), Recipe("int4", 16, "hqq"), Recipe("int3", 16, "gptq")], ids=["int8", "int4", "gptq"]
)
def test_other_families_are_quantized_and_reload(family, recipe, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(OTHERS[family]).eval()
    for parameter in model.parameters():
        if parameter.ndim in (2, 4):  # with the small initial weights, the output would not depend on the image
            nn.init.kaiming_normal_(parameter)
    models.save(model, tmp_path / "m")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # `build` checks that the artifact reloads bit for bit.
    build(tmp_path / "m", recipe, tmp_path / "a", torch.device("cpu"), images)
    assert describe_artifact(tmp_path / "a")["quantized_fraction"] > 0.8
    with torch.inference_mode():
        expected, actual = model(images).logits, load_quantized(tmp_path / "a")(images).logits
    error = ((expected - actual).norm() / expected.norm()).item()
    assert 0 < error < {"int8": 0.4, "int4": 0.8, "int3": 0.8}[recipe.weights]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["b0", "b2"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_fresh_process_gives_bit_identical_logits(size, method, tmp_path):
    from test_artifacts import check_fresh_process

    torch.manual_seed(0)
    models.save(AutoModelForSemanticSegmentation.from_config(_config(size)).eval(), tmp_path / "m")
    check_fresh_process(tmp_path / "m", METHODS[method], tmp_path)
