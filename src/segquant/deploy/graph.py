"""Export a SegFormer as a graph for any batch, height and width (multiples of 32): torch.export and ONNX."""

from __future__ import annotations

import copy
import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from segquant.base.errors import ConfigError, ModelError, one_line
from segquant.data.label_map import class_names
from segquant.data.preprocessing import Preprocessing
from segquant.engines.extras import STEP, needs
from segquant.quant.head import fused_products, has_segformers_head

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu; 23 makes attention one node, which ONNX Runtime 1.31 runs at half the speed
INPUT, LOGITS = "pixel_values", "logits"
_LONGEST = 600  # seconds of torch.export; a SegFormer-B5 takes 110 on two busy cores
_EXAMPLE = (2, 3, 128, 192)  # torch.export would take a batch of 1 for a constant


class Pixels(nn.Module):
    """A copy of a model that maps pixels (B, 3, H, W) to logits (B, C, h, w), or to class maps uint8 (B, H, W).

    `classes` chooses class maps. The decode head multiplies before it upsamples (quant/head.py), by 1x1 convolutions.
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
    """quant.head.EarlyFuse built from convolutions, which quantizers know."""

    def __init__(self, head: nn.Module):
        super().__init__()
        weights, bias = fused_products(head, torch.float64)
        self.stages = nn.ModuleList(
            nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=i == 0) for i, weight in enumerate(weights)
        )
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
    """Export a module that takes pixels (B, 3, H, W), for B up to 256, and H and W up to 4096, by torch.export.

    Pass named=False for a graph that will be exported again: simplifications derived from named sizes double the time
    of the second export. Raises ModelError for a model that cannot be exported, or not within ten minutes.
    """
    sizes = {0: Dim("batch", max=256), 2: STEP * Dim("rows", max=128), 3: STEP * Dim("columns", max=128)}
    dynamic = sizes if named else dict.fromkeys(sizes, Dim.AUTO)
    # The cache of fake tensors costs a third of the time and saves none, but it changes the names in quantized graphs.
    cached = named and isinstance(pixels, GraphModule)
    try:
        with _within(_LONGEST), torch._dynamo.config.patch(fake_tensor_cache_enabled=cached):
            return torch.export.export(pixels, (torch.zeros(_EXAMPLE),), dynamic_shapes=(dynamic,))
    except _TooLong as error:
        raise ModelError(f"torch.export has not exported this model for any size within {_LONGEST} seconds") from error
    except Exception as error:  # it raises many types
        raise ModelError(f"torch.export cannot export this model: {one_line(error, 200)}") from error


def check_opset(opset: int) -> None:
    """Raises ConfigError for an opset that cannot be written. Exporting takes long, so callers check before it."""
    onnx = needs("onnx")
    newest = onnx.defs.onnx_opset_version()
    if not 18 <= opset <= newest:
        raise ConfigError(f"opset {opset} is unknown: onnx {onnx.__version__} and PyTorch write 18 to {newest}")


def to_onnx(
    program: ExportedProgram, config: Any, preprocessing: Preprocessing, opset: int = OPSET, output: str = LOGITS
) -> onnx.ModelProto:
    """Convert an exported program to ONNX, check it and strip the exporter's notes.

    The model's metadata holds `labels` (JSON: a name for each class) and `preprocessing` (JSON: how to normalize
    pixels). Raises ConfigError for an unknown opset, ModelError for a model that does not convert to valid ONNX of this
    opset.
    """
    onnx = needs("onnx", "onnxscript")
    check_opset(opset)
    try:
        with _quiet():
            written = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, input_names=[INPUT], output_names=[output], verbose=False
            )
    except Exception as error:  # it raises many types
        raise ModelError(f"torch.onnx cannot convert this model: {one_line(error, 200)}") from error
    model = written.model_proto
    actual_opset = model.opset_import[0].version
    if actual_opset != opset:
        raise ModelError(f"PyTorch cannot write opset {opset} for this model: choose opset {actual_opset}")
    strip(model)
    names = class_names(config)
    for key, value in {"labels": names, "preprocessing": {**preprocessing.to_json(), "multiple_of": STEP}}.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the ONNX model is not valid: {one_line(error, 200)}") from error
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove, in place, the notes of exporters and quantizers, and the opsets that no node uses."""
    metadata = [entry for entry in model.metadata_props if entry.key in ("labels", "preprocessing")]
    del model.metadata_props[:]
    model.metadata_props.extend(metadata)
    model.ClearField("doc_string")
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    domains = {node.domain for node in graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


class _TooLong(BaseException):
    """No Exception, which torch.export would catch."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _TooLong where the block takes longer: the algebra of the sizes of Swin's windows does not end.

    There is no limit where signals are not to be had: off the main thread, and on Windows.
    """

    running = True

    def stop(*_: Any) -> None:
        if running:
            raise _TooLong

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, start = signal.signal(signal.SIGALRM, stop), time.monotonic()
    # Again each second, as Python drops what is raised while it collects garbage.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        running = False  # an alarm from here on is none of the block's
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)  # None: a handler that is not Python's
        if left:  # the caller's own alarm
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)


@contextmanager
def _quiet():
    """Silence torch.onnx's warnings about torchvision's operators and deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
