"""Static int8 by torchao's PyTorch 2 export quantization (PT2E): calibrate or train a graph, and convert it.

Linear and Conv2d are quantized: weights with a scale per channel, activations with a scale and a zero point per tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace

import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import (
    FakeQuantize,
    HistogramObserver,
    MovingAveragePerChannelMinMaxObserver,
    allow_exported_model_train_eval,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    move_exported_model_to_eval,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    QuantizationConfig,
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from segquant.deploy.graph import Pixels, exported

_BATCH = 4  # images per calibration batch


def prepared(model: nn.Module, images: torch.Tensor, trained: bool, fixed: Collection[str] = ()) -> GraphModule:
    """Insert observers into the graph of a float model, and calibrate them on images (N, 3, H, W).

    With `trained` it inserts trainable fake quantization instead: activations keep the ranges of calibration, and the
    ranges of weights follow the weights. The weights of the layers `fixed` take no gradient.
    """
    pixels = Pixels(model).requires_grad_(trained)
    graph = exported(pixels, named=False).module()
    quantizer = Quantizer()
    quantizer.set_global(_fake_quantized() if trained else get_default_x86_inductor_quantization_config())
    graph = (prepare_qat_pt2e if trained else prepare_pt2e)(graph, quantizer)
    graph.apply(disable_fake_quant)
    with torch.no_grad():
        for batch in images.split(_BATCH):
            graph(batch)
    graph.apply(enable_fake_quant)
    for module in graph.modules():
        if isinstance(module, FakeQuantize) and not module.is_per_channel:
            module.apply(disable_observer)
    names = {f"model.{layer}.weight" for layer in fixed}
    for name, parameter in graph.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    return graph


def calibrated(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """The int8 graph of a float model, with ranges from images (N, 3, H, W)."""
    return converted(prepared(model, images, trained=False))


def converted(graph: GraphModule) -> GraphModule:
    """Turn a graph from `prepared`, trained or not, into one with int8 weights and (de)quantize operators.

    This consumes `graph`: do not use it afterwards.
    """
    move_exported_model_to_eval(graph)
    return convert_pt2e(graph.requires_grad_(False))


class Trainable(nn.Module):
    """A fake-quantized graph as a model for the training loop, with the logits of the converted graph."""

    def __init__(self, graph: GraphModule):
        super().__init__()
        self.graph = allow_exported_model_train_eval(graph)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.graph(pixel_values))


class Quantizer(X86InductorQuantizer):
    """X86InductorQuantizer that also quantizes the outputs of convolutions, so that ONNX Runtime computes in int8.

    The first convolution stays float, which takes no longer. Pixels in int8 are a fifth of the accuracy that all int8
    activations cost, and its output in int8 would cost more than all of them.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        model = super().annotate(model)
        convolutions = [node for node in model.graph.nodes if node.target is torch.ops.aten.conv2d.default]
        for node in convolutions[:1]:
            del node.meta["quantization_annotation"]
        for node in convolutions[1:]:
            node.meta["quantization_annotation"].output_qspec = self.global_config.output_activation
        return model


def _fake_quantized() -> QuantizationConfig:
    """X86InductorQuantizer's configuration for training, with two changes.

    Its fused fake quantization rounds differently from the converted graph, so FakeQuantize replaces it. It averages
    weight ranges over past weights; averaging_constant=1 takes the range of the current weights instead.
    """
    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=HistogramObserver, eps=2**-12),
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=2**-12
        ),
    )
    return QuantizationConfig(activations, activations, weights, None, True)
