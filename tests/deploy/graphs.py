"""A small model, and a recipe for every engine and algorithm, for the tests of graphs."""

import torch
from conftest import small_segformer
from torch import nn

from segquant.base.config import Calibration, Graph

FEW = Calibration(images=4)
RECIPES = {
    "onnx_float32": Graph(engine="onnxruntime", weights="float32"),
    "onnx_float16": Graph(engine="onnxruntime", weights="float16"),
    "pt2e": Graph(engine="onnxruntime", weights="int8", algorithm="pt2e", calibration=FEW),
    "qdq": Graph(engine="onnxruntime", weights="int8", algorithm="qdq", calibration=FEW),
    "openvino_float32": Graph(engine="openvino", weights="float32"),
    "openvino_bfloat16": Graph(engine="openvino", weights="float32", compute="bfloat16"),
    "nncf_default": Graph(engine="openvino", weights="int8", algorithm="nncf", calibration=FEW),
    "nncf": Graph(
        engine="openvino", weights="int8", algorithm="nncf", calibration=FEW, ignored_types=("GroupConvolution", "Add")
    ),
}


def images(count=4):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(2)).cumsum(2) / 4


def float_model(stages=4):
    """A small SegFormer with random statistics in its batch normalization, as after training, and varied classes."""
    model = small_segformer(11, stages)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.1, 4, generator=generator)
    model.decode_head.classifier.weight.data.normal_(generator=generator)
    return model.requires_grad_(False)
