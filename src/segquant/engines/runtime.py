"""A graph on an engine of its own, called as transformers' models are, so that evaluation treats every engine alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from segquant.base.errors import ModelError, one_line
from segquant.data.protocols import Normalization
from segquant.engines.extras import STEP

CLASSES = "classes"  # the output's name in a graph that gives class maps in place of logits


class End(NamedTuple):
    """An input or output of a graph; a size that may vary is a word."""

    name: str
    kind: str
    shape: list[int | str]


class Runtime(nn.Module):
    """A loaded graph: pixels float32 (B, 3, H, W) to `.logits` float32 (B, C, h, w).

    `version` is the engine's, `threads` how many it computes with; `normalization` is the one that the graph's
    metadata name, `batch` how many images it takes at a time, None for any number.
    """

    def __init__(self, call: Callable[[np.ndarray], np.ndarray], engine: str, version: str, threads: int):
        super().__init__()
        self.engine, self.version, self.threads, self._call = engine, version, threads, call
        self.normalization: Normalization | None = None
        self.batch: int | None = None
        self.config = SimpleNamespace(num_labels=None)
        self._place = nn.Parameter(torch.zeros(1), requires_grad=False)  # says: float32 on the CPU

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B, C, h, w) of inputs float32 (B, 3, H, W). Raises ModelError for sizes it cannot take."""
        shape = "x".join(map(str, inputs.shape))
        if any(size % STEP for size in inputs.shape[-2:]):
            raise ModelError(f"graphs take heights and widths in multiples of {STEP}, not {shape}: choose such a size")
        try:
            return torch.from_numpy(self._call(inputs.numpy()))
        except Exception as error:  # engines raise many types
            raise ModelError(
                f"{self.engine} cannot run the graph on pixels {shape}: {one_line(error, end=True)}"
            ) from error

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(pixel_values))


def stored_normalization(path: Path, metadata: dict[str, str]) -> Normalization | None:
    """Mean and standard deviation that a graph's metadata name, None where they name none.

    Raises ModelError where `preprocessing` is not what `segquant export` writes: pixels would be normalized wrongly.
    """
    if "preprocessing" not in metadata:
        return None
    try:
        given: Any = json.loads(metadata["preprocessing"])
        (r, g, b), (dr, dg, db) = given["mean"], given["std"]
        fits = given.get("channels", "RGB") == "RGB" and abs(given.get("scale", 1 / 255) - 1 / 255) < 1e-6
        mean, std = tuple(map(float, (r, g, b))), tuple(map(float, (dr, dg, db)))
    except (AttributeError, KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ModelError(
            f"{path} has metadata `preprocessing` of another kind: it must be JSON with the mean and std of three "
            "channels RGB, of pixels divided by 255"
        )
    return mean, std
