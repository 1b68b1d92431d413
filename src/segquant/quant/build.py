"""Baseline and recipe in, verified artifact out: what a quantize stage does."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from segquant import models
from segquant.config import Recipe
from segquant.errors import ModelError, UnavailableError
from segquant.quant.artifacts import load_quantized, save_quantized, save_unavailable
from segquant.quant.methods import quantize

log = logging.getLogger(__name__)


def build(source: str | Path, recipe: Recipe, folder: str | Path, device: torch.device) -> str | None:
    """Quantize the baseline at `source` into the artifact `folder`; give back why not where `device` cannot.

    Raises ModelError when the artifact read back does not give bit-identical logits.
    """
    model = models.load(source)
    size = len(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    start = time.perf_counter()
    try:
        done = quantize(model, recipe, device)
    except UnavailableError as error:
        save_unavailable(recipe, str(error), folder)
        return str(error)
    log.info("quantized %d modules in %.2f s", len(done), time.perf_counter() - start)
    save_quantized(model, recipe, folder, source, size)
    if not torch.equal(_probe(model), _probe(load_quantized(folder, device))):
        raise ModelError(f"{folder} read back does not give the logits it was saved with")
    return None


@torch.inference_mode()
def _probe(model: nn.Module) -> torch.Tensor:
    """Logits of a fixed small noise image."""
    parameter = next(model.parameters())
    noise = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    return model(noise.to(parameter.device, parameter.dtype)).logits
