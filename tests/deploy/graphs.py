"""A small model, and a recipe for every engine and algorithm, for the tests of graphs."""

import torch
from conftest import small_segformer

from segquant.base.config import Calibration, Graph

FEW = Calibration(images=4)
RECIPES = {
    "onnx_float32": Graph(engine="onnxruntime", weights="float32"),
    "onnx_float16": Graph(engine="onnxruntime", weights="float16"),
    "pt2e": Graph(engine="onnxruntime", weights="int8", algorithm="pt2e", calibration=FEW),
    "qdq": Graph(engine="onnxruntime", weights="int8", algorithm="qdq", calibration=FEW),
    "openvino_float32": Graph(engine="openvino", weights="float32"),
    "openvino_bfloat16": Graph(engine="openvino", weights="float32", compute="bfloat16"),
    "nncf": Graph(
        engine="openvino", weights="int8", algorithm="nncf", calibration=FEW, ignored_types=("GroupConvolution", "Add")
    ),
}


def images(count=4):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(2)).cumsum(2) / 4


# Of an image of 32x32, each stage has a single key, and the last one a single pixel, as in the models that people use.
GEOMETRY = {
    2: {"strides": [8, 4], "sr_ratios": [4, 1]},
    4: {"strides": [4, 2, 2, 2], "sr_ratios": [8, 4, 2, 1]},
}


def float_model(stages=2):
    """A small SegFormer with statistics in its batch normalization, as after training, which gives many classes."""
    model = small_segformer(11, stages, **GEOMETRY[stages])
    generator = torch.Generator().manual_seed(1)
    norm = model.decode_head.batch_norm
    norm.train().momentum = 1.0  # its statistics become those of one batch
    with torch.no_grad():
        model(images())
    norm.eval()
    classifier = model.decode_head.classifier
    for parameter in (norm.weight, norm.bias, classifier.weight):
        parameter.data.normal_(generator=generator)
    with torch.no_grad():
        classifier.bias -= model(images()).logits.mean((0, 2, 3))  # no class is everywhere
    return model.requires_grad_(False)
