"""A graph on an engine of its own, called as transformers' models are, so that evaluation treats every engine alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from segquant.base.errors import ModelError, one_line
from segquant.base.files import parse_json
from segquant.data.preprocessing import Preprocessing
from segquant.engines.extras import STEP

CLASSES = "classes"  # the output's name in a graph that gives class maps in place of logits


class End(NamedTuple):
    """An input or output of a graph; a size that may vary is a word."""

    name: str
    kind: str
    shape: list[int | str]


class Runtime(nn.Module):
    """A loaded graph: pixels float32 (B, 3, H, W) to `.logits` float32 (B, C, h, w).

    `call` runs it on an array of pixels of its own dtype, and gives the array of its output.

    `version` is the engine's, `threads` how many it computes with, `metadata` what the file says of itself; from that,
    `preprocessing` (None where it says nothing) and the classes' names in `config`. `batch` is how many images it takes
    at a time and `size` their (height, width), None for any, `dtype` of what it takes.
    """

    def __init__(self, call: Callable[[np.ndarray], np.ndarray], engine: str, version: str, threads: int):
        super().__init__()
        self.engine, self.version, self.threads, self.call = engine, version, threads, call
        self.metadata: dict[str, str] = {}
        self.preprocessing: Preprocessing | None = None
        self.batch: int | None = None
        self.size: tuple[int, int] | None = None
        self.dtype = torch.float32
        self.config = SimpleNamespace(num_labels=None, id2label={})
        self._scale: tuple[float, ...] | None = None  # pixels a place of the logits, down and across
        self._place = nn.Parameter(torch.zeros(1), requires_grad=False)  # says: float32 on the CPU

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B, C, h, w) of inputs float32 (B, 3, H, W). Raises ModelError for sizes it cannot take."""
        shape = "x".join(map(str, inputs.shape))
        if self.size and self.size != tuple(inputs.shape[-2:]):
            height, width = self.size
            raise ModelError(f"the graph takes {height}x{width} alone, not {shape}: choose fixed-{height}x{width}-v1")
        if not self.size and any(size % STEP for size in inputs.shape[-2:]):
            raise ModelError(f"graphs take heights and widths in multiples of {STEP}, not {shape}: choose such a size")
        try:
            if self.batch in (None, len(inputs)):
                return self._run(inputs)
            return torch.cat([self._filled(part) for part in inputs.split(self.batch)])
        except Exception as error:  # engines raise many types
            raise ModelError(
                f"{self.engine} cannot run the graph on pixels {shape}: {one_line(error, end=True)}"
            ) from error

    def _run(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = torch.from_numpy(self.call(inputs.to(self.dtype).numpy())).float()
        shape = "x".join(map(str, logits.shape))
        if logits.ndim != 4 or len(logits) != len(inputs) or not logits.numel():
            raise ValueError(f"it gives logits {shape} for {len(inputs)} images")
        scale = tuple(pixels / places for pixels, places in zip(inputs.shape[2:], logits.shape[2:]))
        if self._scale not in (None, scale):  # OpenVINO has given the logits of the images before
            raise ValueError(f"it gives logits {shape}, which fit images of another size")
        self._scale = scale
        return logits

    def _filled(self, inputs: torch.Tensor) -> torch.Tensor:
        """The logits of fewer inputs than the graph takes at a time: zeros fill them up."""
        zeros = inputs.new_zeros(self.batch - len(inputs), *inputs.shape[1:])
        return self._run(torch.cat([inputs, zeros]))[: len(inputs)]

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(pixel_values))


def read_metadata(model: Runtime, path: Path) -> None:
    """Take `preprocessing` and `labels` over from the metadata of a graph with `num_labels` classes.

    Raises ModelError for what `segquant export` would not write, as pixels or classes would come out wrong.
    """
    metadata, classes = model.metadata, model.config.num_labels
    if "preprocessing" in metadata:
        try:
            model.preprocessing = Preprocessing.from_json(metadata["preprocessing"])
        except ValueError as error:
            raise ModelError(f"{path} has metadata `preprocessing` that cannot be followed: {error}") from error
    if "labels" in metadata:
        try:
            names = parse_json(metadata["labels"])
        except ValueError:
            names = None
        if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{path} has metadata `labels` that are not a JSON list of {classes} names")
        model.config.id2label = dict(enumerate(names))
