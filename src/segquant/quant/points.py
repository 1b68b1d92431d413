"""How good a model is on train images, in points: what a budget in points is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from segquant.quant.tensors import finite


class Points(NamedTuple):
    """`score(model)` gives points (0 to 100) of what `measure` names."""

    score: Callable[[nn.Module], float]
    measure: str


def agreement(exact: nn.Module, inputs: Callable[[], Iterable[torch.Tensor]]) -> Points:
    """Percent of the logits' places that get the class of the model `exact`; `inputs()` are (N, 3, H, W) each.

    `exact` predicts at once, so that an image that cannot be read raises DataError here.
    """

    @torch.inference_mode()
    def classes(model: nn.Module) -> torch.Tensor:
        device = next(model.parameters()).device
        logits = (finite(model(batch.to(device)).logits, "the model") for batch in inputs())
        return torch.cat([part.argmax(1).flatten().cpu() for part in logits])

    expected = classes(exact)
    return Points(lambda model: 100 * (classes(model) == expected).double().mean().item(), "agreement with float32")
