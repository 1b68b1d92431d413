"""Quantize a whole model by GPTQ in one forward pass, on images without labels.

The layers are quantized in the order in which the model calls them. The batch holds every image twice: one half passes
through the layers quantized so far, the other through the float layers. Each layer therefore sees its real inputs, is
fitted to the float model's outputs, and compensates for the errors of earlier layers (Y. Li et al., "GPTAQ", 2025,
https://arxiv.org/abs/2504.02692).

Image positions are weighted by their influence on the prediction: the norm, at the layer's output, of the gradient of
the log-likelihood of classes sampled from the float model's prediction. The squared norm would be the Fisher
information (J. Kim et al., "GuidedQuant", 2025, https://arxiv.org/abs/2505.07004), but a few positions dominate it and
the fit ignores all others: on photographs at 2 bits, the norm lost half as much mIoU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from segquant.base.allocator import keep_freed_memory
from segquant.base.progress import progress
from segquant.quant.codes import Codes, Grid, dequantize
from segquant.quant.gptq import quantize_weight
from segquant.quant.tensors import as_float16

DAMPING = 0.05  # added to second moments, as a share of their mean diagonal; deep layers see few positions


def calibrate(
    model: nn.Module, layers: Mapping[str, Grid], images: torch.Tensor
) -> dict[str, tuple[Codes, torch.Tensor | None]]:
    """Compute codes and a corrected bias for each named Linear layer, without changing `model`.

    `layers` maps names to (bits, group size, ranges); `images` (N, 3, H, W) are model inputs. A layer that the
    model does not call is rounded to nearest. Memory grows with N: a layer's activations on all images are held at
    once.
    """
    keep_freed_memory()
    importance = position_weights(model, list(layers), images)
    results: dict[str, tuple[Codes, torch.Tensor | None]] = {}
    with progress(total=len(layers), desc="gptq", unit="layer") as bar:

        def quantize(name: str):
            def hook(linear: nn.Linear, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
                if name not in importance:  # no gradient reaches the layer from the logits, so it cannot be fitted
                    return output
                inputs, float_inputs = args[0].chunk(2)
                if name not in results:
                    results[name] = _solve(linear, inputs, float_inputs, importance[name], layers[name])
                    bar.update()
                codes, bias = results[name]
                return torch.cat([F.linear(inputs, dequantize(codes), bias), output[len(inputs) :]])

            return hook

        handles = [model.get_submodule(name).register_forward_hook(quantize(name)) for name in layers]
        try:
            with torch.no_grad():
                model(torch.cat([images, images]))
        finally:
            for handle in handles:
                handle.remove()
        for name in layers.keys() - results.keys():
            linear = model.get_submodule(name)
            zeros = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
            results[name] = quantize_weight(linear.weight, zeros, layers[name]), linear.bias
            bar.update()
    keep_freed_memory(False)  # return gigabytes that the next steps do not need
    return {name: results[name] for name in layers}


def position_weights(
    model: nn.Module, names: list[str], images: torch.Tensor, seed: int = 0
) -> dict[str, torch.Tensor]:
    """The influence (N, positions) of each position of each named layer's output on the prediction, with mean 1.

    Mean IoU weights all classes equally, so a pixel counts by the inverse square root of its predicted class's
    frequency. Each image takes one backward pass. The result omits layers that the model does not call.
    """
    with torch.no_grad():
        predicted = torch.cat([model(image).logits.argmax(1) for image in images.split(1)])
    rarity = predicted.flatten().bincount().clamp_min(1).rsqrt()
    norms: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)

    def watch(name: str):
        def hook(_module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
            def keep(gradient: torch.Tensor) -> None:
                # Backward visits calls in reverse, so a layer that is called repeatedly keeps its first call.
                image_norms[name] = gradient.norm(dim=-1).flatten()

            if output.requires_grad:  # an output that does not depend on the image has no gradient
                output.register_hook(keep)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with progress(total=len(images), desc="importance", unit="image") as bar:
            for image, classes in zip(images.split(1), predicted, strict=True):
                image_norms: dict[str, torch.Tensor] = {}
                logits = model(image.detach().requires_grad_()).logits[0].flatten(1).T
                sampled = torch.multinomial(logits.detach().cpu().softmax(1), 1, generator=generator)[:, 0]
                losses = F.cross_entropy(logits, sampled.to(logits.device), reduction="none")
                (losses * rarity[classes.flatten()]).sum().backward()
                for name, norm in image_norms.items():
                    norms.setdefault(name, []).append(norm)
                bar.update()
    finally:
        for handle in handles:
            handle.remove()
    stacked = {name: torch.stack(parts) for name, parts in norms.items()}
    return {name: w / w.mean() if w.mean() > 0 else torch.ones_like(w) for name, w in stacked.items()}


def _solve(
    linear: nn.Linear,
    inputs: torch.Tensor,
    float_inputs: torch.Tensor,
    importance: torch.Tensor,
    grid: Grid,
) -> tuple[Codes, torch.Tensor | None]:
    """Codes and bias of one layer, from its inputs in the quantized and in the float model, both (N, ..., columns)."""
    columns, images = linear.in_features, len(importance)
    weights = importance / importance.sum()
    parts = [
        (w[:, None], x.reshape(-1, columns), y.reshape(-1, columns))
        for w, x, y in zip(weights, inputs.chunk(images), float_inputs.chunk(images), strict=True)
    ]
    mean, float_mean = sum((w * x).sum(0) for w, x, _ in parts), sum((w * y).sum(0) for w, _, y in parts)
    # The bias corrects the mean error, so the weights are fitted to centred inputs.
    center, float_center = (mean, float_mean) if linear.bias is not None else (0.0, 0.0)
    hessian, cross = inputs.new_zeros(columns, columns), inputs.new_zeros(columns, columns)
    for w, x, y in parts:  # one image at a time, to save memory
        x = x - center
        weighted = (w * x).T
        hessian += weighted @ x
        cross += weighted @ (y - float_center)
    damping = torch.eye(columns, device=inputs.device) * (DAMPING * hessian.diagonal().mean()).clamp_min(1e-12)
    # The float weight that would reproduce the float outputs from the quantized model's inputs
    target = torch.linalg.solve((hessian + damping).double(), ((cross + damping) @ linear.weight.T).double())
    codes = quantize_weight(target.T.to(linear.weight.dtype).contiguous(), hessian, grid, damping=DAMPING)
    if linear.bias is None:
        return codes, None
    return codes, as_float16(linear.bias + linear.weight @ float_mean - dequantize(codes) @ mean)
