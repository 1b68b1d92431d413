"""torchao's PyTorch 2 export quantization (PT2E): a graph, its fake or real int8, calibrated and, if asked, trained.

Static int8 of Linear and Conv2d: weights have a scale a channel, activations one and a zero point a tensor.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    allow_exported_model_train_eval,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
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

_BATCH = 4  # images that are calibrated on at a time


def prepared(model: nn.Module, images: torch.Tensor, trained: bool) -> GraphModule:
    """The graph of a float model with observers, or with fake quantization if it is to be `trained`, calibrated on
    images (N, 3, H, W)."""
    pixels = Pixels(model).requires_grad_(trained)
    graph = exported(pixels, named=False).module()
    quantizer = Quantizer()
    quantizer.set_global(_fake_quantized() if trained else get_default_x86_inductor_quantization_config())
    graph = (prepare_qat_pt2e if trained else prepare_pt2e)(graph, quantizer)
    graph.apply(disable_fake_quant)
    with torch.no_grad():
        for some in images.split(_BATCH):
            graph(some)
    graph.apply(enable_fake_quant)
    return graph


def calibrated(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """The int8 graph of a float model, its ranges from images (N, 3, H, W)."""
    return converted(prepared(model, images, trained=False))


def converted(graph: GraphModule) -> GraphModule:
    """What `prepared` gave, trained or not, with quantize and dequantize operators and int8 weights; it is used up."""
    move_exported_model_to_eval(graph)
    return convert_pt2e(graph.requires_grad_(False))


class Trainable(nn.Module):
    """A fake-quantized graph as the training loop takes a model, its logits those of the converted one.

    After `observed` training steps the ranges of activations stay as they are, and no evaluation moves them; those of
    weights are of the weights as they are, always.
    """

    def __init__(self, graph: GraphModule, observed: int):
        super().__init__()
        self.graph = allow_exported_model_train_eval(graph)
        self.observed = observed
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # so that a checkpoint has it

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        training = torch.is_grad_enabled()
        moving = training and self.seen < self.observed
        for module in self.graph.modules():
            if isinstance(module, FakeQuantize) and not module.is_per_channel:
                module.apply(enable_observer if moving else disable_observer)
        self.seen += training
        return SimpleNamespace(logits=self.graph(pixel_values))


class Quantizer(X86InductorQuantizer):
    """X86InductorQuantizer, and the outputs of convolutions as well, without which ONNX Runtime computes them in float.

    Not that of the first one, which sees pixels: it costs more accuracy than all other layers together.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        model = super().annotate(model)
        convolutions = [node for node in model.graph.nodes if node.target is torch.ops.aten.conv2d.default]
        for node in convolutions[1:]:
            node.meta["quantization_annotation"].output_qspec = self.global_config.output_activation
        return model


def _fake_quantized() -> QuantizationConfig:
    """X86InductorQuantizer's own configuration for training, but for two things.

    Its fused fake quantization rounds otherwise than what `convert_pt2e` makes of it, and its moving average of
    weights' ranges is of weights that are gone: here it is of the weights as they are.
    """
    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=2**-12),
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
