"""A SegFormer as a graph of any batch, height and width (multiples of 32): by torch.export, and as ONNX."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram

from segquant.base.errors import ConfigError, ModelError
from segquant.data.protocols import Normalization
from segquant.engines.extras import STEP, needs
from segquant.quant.head import fused_products, has_segformers_head

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu; with 23 attention is one node too, which ONNX Runtime 1.31 runs at half the speed
INPUT, LOGITS = "pixel_values", "logits"
_EXAMPLE = (2, 3, 128, 192)  # a batch of 1 would be taken for a constant


class Pixels(nn.Module):
    """A model from pixels (B, 3, H, W) to logits (B, C, h, w), or to class maps uint8 (B, H, W) where `classes`.

    Its decode head's products are taken before the upsampling (evaluation/head.py), here as 1x1 convolutions. It is
    a copy.
    """

    def __init__(self, model: nn.Module, classes: bool = False):
        super().__init__()
        self.model, self.classes = copy.deepcopy(model).eval(), classes
        if has_segformers_head(self.model):
            self.model.decode_head = ConvFuse(self.model.decode_head)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits = self.model(pixel_values).logits
        if not self.classes:
            return logits
        size = pixel_values.shape[-2:]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


class ConvFuse(nn.Module):
    """evaluation.head.EarlyFuse in layers that quantizers know."""

    def __init__(self, head: nn.Module):
        super().__init__()
        weights, bias = fused_products(head, torch.float64)
        self.stages = nn.ModuleList(nn.Conv2d(w.shape[1], w.shape[0], 1, bias=i == 0) for i, w in enumerate(weights))
        for stage, weight in zip(self.stages, weights, strict=True):
            stage.weight = nn.Parameter(weight.float()[:, :, None, None], requires_grad=False)
        self.stages[0].bias = nn.Parameter(bias.float(), requires_grad=False)
        self.classifier = head.classifier

    def forward(self, encoder_hidden_states: tuple[torch.Tensor, ...], **_kwargs) -> torch.Tensor:
        largest, *others = encoder_hidden_states
        first, *rest = self.stages
        fused = first(largest)
        for state, stage in zip(others, rest, strict=True):
            fused = fused + F.interpolate(stage(state), largest.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(F.relu(fused))


def exported(pixels: nn.Module, named: bool = True) -> ExportedProgram:
    """torch.export of what takes pixels (B, 3, H, W), for any B, H and W up to 256, 4096 and 4096.

    Of what is exported once more, its sizes `named` only then: what torch.export simplifies by the names makes the
    second export take twice as long. Raises ModelError for a model that cannot be exported.
    """
    sizes = {0: Dim("batch", max=256), 2: STEP * Dim("rows", max=128), 3: STEP * Dim("columns", max=128)}
    dynamic = sizes if named else dict.fromkeys(sizes, Dim.AUTO)
    try:
        return torch.export.export(pixels, (torch.zeros(_EXAMPLE),), dynamic_shapes=(dynamic,))
    except Exception as error:  # it raises many types
        raise ModelError(f"torch.export cannot take this model: {' '.join(str(error).split())[:200]}") from error


def to_onnx(
    program: ExportedProgram, config: Any, normalization: Normalization, opset: int = OPSET, output: str = LOGITS
) -> onnx.ModelProto:
    """ONNX of an exported program, checked, without what exporters note for themselves.

    The model's metadata has `labels` (JSON, a name for each class) and `preprocessing` (JSON). Raises ConfigError for
    an opset that the exporter cannot write.
    """
    onnx = needs("onnx", "onnxscript")
    known = onnx.defs.onnx_opset_version()
    if not 18 <= opset <= known:
        raise ConfigError(f"opset {opset} is unknown: onnx {onnx.__version__} and PyTorch write 18 to {known}")
    try:
        with _quiet():
            written = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, input_names=[INPUT], output_names=[output], verbose=False
            )
    except Exception as error:  # it raises many types
        raise ModelError(f"torch.onnx cannot take this model: {' '.join(str(error).split())[:200]}") from error
    model = written.model_proto
    if model.opset_import[0].version != opset:
        found = model.opset_import[0].version
        raise ConfigError(f"opset {opset} cannot be written for this model: PyTorch gives {found}")
    strip(model)
    names = [config.id2label[i] for i in range(config.num_labels)]
    mean, std = map(list, normalization)
    preprocessing = {"channels": "RGB", "scale": 1 / 255, "mean": mean, "std": std, "multiple_of": STEP}
    for key, value in {"labels": names, "preprocessing": preprocessing}.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the ONNX model is not valid: {' '.join(str(error).split())[:200]}") from error
    return model


def strip(model: onnx.ModelProto) -> None:
    """Take out, in place, what exporters and quantizers note of their own work, and opsets that no node is of."""
    ours = [one for one in model.metadata_props if one.key in ("labels", "preprocessing")]
    del model.metadata_props[:]
    model.metadata_props.extend(ours)
    model.ClearField("doc_string")
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    used = {node.domain for node in graph.node}
    kept = [one for one in model.opset_import if one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextmanager
def _quiet():
    """Without what torch.onnx tells of torchvision's operators and of its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
