"""Baseline and recipe in, verified artifact out: what a quantize stage does."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from segquant import models
from segquant.base.allocator import align
from segquant.base.config import Auto, Recipe
from segquant.base.errors import ConfigError, ModelError, UnavailableError
from segquant.base.files import read_json, replacing
from segquant.base.ranks import from_first, ranks
from segquant.base.weights import SAFETENSORS
from segquant.quant.artifacts import describe_artifact, load_quantized, save_missing, save_quantized
from segquant.quant.points import Points
from segquant.quant.recipes import Refine, quantize
from segquant.quant.tensors import finite

log = logging.getLogger(__name__)


def build(
    source: str | Path,
    recipe: Recipe | Auto,
    folder: str | Path,
    device: torch.device,
    images: torch.Tensor | None = None,
    refine: Refine | None = None,
    run: str | None = None,
    points: Points | None = None,
) -> dict[str, Any]:
    """Quantize the baseline at `source` into the artifact `folder`, calibrating on `images` (N, 3, H, W)
    and training by `refine`, where it wants them; `run`, all that the training depends on, is stored with it. `points`
    score models, for weights `auto` with a budget of these.

    Gives {"seconds": what it took without loading and saving, "calibration_images": N} on the first rank, or
    {"unavailable": why} where `device` cannot run it. Raises ModelError when the artifact read back does not give
    bit-identical logits, or gives NaN.
    """
    model = models.load(source)
    size = len(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    start = time.perf_counter()
    try:
        plain, allocation = _resolved(model, recipe, device, images, points)
        done = quantize(model, plain, device, images, refine)
    except UnavailableError as error:
        reason = {"unavailable": str(error)}
        save_missing(recipe, reason, folder)
        return reason
    seconds = time.perf_counter() - start
    align(model)  # as the artifact will be, read back
    if ranks()[0]:
        return {}
    log.info("quantized %d modules in %.2f s", len(done), seconds)
    with replacing(folder) as part:
        save_quantized(model, recipe, part, source, size, run, allocation)
        if isinstance(recipe, Auto):
            check_size(part / SAFETENSORS, recipe)
        if not torch.equal(finite(_probe(model), str(folder)), _probe(load_quantized(part, device))):
            raise ModelError(f"{folder} read back does not give the logits it was saved with")
    return {"seconds": round(seconds, 3), "calibration_images": len(images) if images is not None else 0}


def check_size(path: Path, recipe: Auto) -> None:
    """Raise ModelError for a file above the recipe's budget: biases that float16 cannot hold take more than planned."""
    size = path.stat().st_size
    if recipe.megabytes is not None and size > 1e6 * recipe.megabytes:
        raise ModelError(
            f"the artifact takes {size / 1e6:.6g} MB, more than megabytes {recipe.megabytes:g}: allow more"
        )


def _resolved(
    model: nn.Module,
    recipe: Recipe | Auto,
    device: torch.device,
    images: torch.Tensor | None,
    points: Points | None,
) -> tuple[Recipe, dict[str, Any] | None]:
    """A recipe whose layers have their bits, and how weights `auto` came to them; ranks that train have the same."""
    if isinstance(recipe, Recipe):
        return recipe, None
    from segquant.quant.allocate import allocate  # scipy takes a while

    if images is None:
        raise ConfigError("weights auto calibrate on images of the train split, but there are none: give some")

    def chosen() -> tuple[Recipe, dict[str, Any]]:
        return allocate(model.to(device), recipe, images.to(device), points)

    return from_first(chosen) if recipe.train else chosen()


def take(
    trained: str | Path, folder: str | Path, run: str, load: Callable[[Path], Any] = load_quantized
) -> dict[str, Any] | None:
    """Copy the artifact `trained` to `folder` if the training named `run` made it; what `build` gave then, else None.

    Its times lie beside it, as `trained`.json. Raises what `load` does for an artifact that is damaged.
    """
    trained = Path(trained)
    if not trained.is_dir() or describe_artifact(trained).get("run") != run:
        return None
    load(trained)
    if not ranks()[0]:
        with replacing(folder) as part:
            shutil.copytree(trained, part)
    log.info("%s was made by this very training, which is not done again", trained)
    return {**read_json(trained.with_name(f"{trained.name}.json")), "taken_from": str(trained)}


@torch.inference_mode()
def _probe(model: nn.Module) -> torch.Tensor:
    """Logits of a fixed noise image, of the size the model was configured for."""
    return model(models.noise(model)).logits
