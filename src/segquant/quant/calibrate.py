"""GPTQ through a whole model in one forward pass, on images without labels.

Layers are quantized in the order in which the model calls them. The pass carries every image twice: one half
of the batch goes through the layers as they have been quantized so far, the other through the float ones. So
each layer sees the inputs that it will really have, is fitted to the outputs that the float model has there
(Y. Li et al., "GPTAQ", 2025, https://arxiv.org/abs/2504.02692), and makes up for errors of those before it.

Positions of an image count by how much they matter to the prediction: by the gradient, at the layer's output,
of the log-likelihood of classes drawn from the float model's own prediction. Its square would be the Fisher
information (J. Kim et al., "GuidedQuant", 2025, https://arxiv.org/abs/2505.07004), but so few positions hold most
of that that the fit is to them alone: on photographs the norm itself lost half as much mIoU at 2 bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from segquant.base.allocator import keep_freed_memory
from segquant.base.progress import progress
from segquant.quant.gptq import Codes, dequantize, quantize_weight
from segquant.quant.tensors import as_float16

DAMPING = 0.05  # share of the mean diagonal added to second moments; deep layers see few positions


def calibrate(
    model: nn.Module, layers: Mapping[str, tuple[int, int]], images: torch.Tensor
) -> dict[str, tuple[Codes, torch.Tensor | None]]:
    """Codes and the corrected bias of each named Linear of `model`, which is left as it is.

    `layers` gives (bits, group size); `images` (N, 3, H, W) are the model's inputs. One that the model does
    not call is rounded on its own. Memory grows with N: every image's activations at a layer are held at once.
    """
    keep_freed_memory()
    importance = position_weights(model, list(layers), images)
    done: dict[str, tuple[Codes, torch.Tensor | None]] = {}
    with progress(total=len(layers), desc="gptq", unit="layer") as bar:

        def quantize(name: str):
            def hook(linear: nn.Linear, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
                if name not in importance:  # it cannot be fitted: no gradient reaches it from the logits
                    return output
                now, exact = args[0].chunk(2)
                if name not in done:
                    done[name] = _solve(linear, now, exact, importance[name], *layers[name])
                    bar.update()
                codes, bias = done[name]
                return torch.cat([F.linear(now, dequantize(codes), bias), output[len(now) :]])

            return hook

        handles = [model.get_submodule(name).register_forward_hook(quantize(name)) for name in layers]
        try:
            with torch.no_grad():
                model(torch.cat([images, images]))
        finally:
            for handle in handles:
                handle.remove()
        for name in layers.keys() - done.keys():
            linear = model.get_submodule(name)
            nothing = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
            done[name] = quantize_weight(linear.weight, nothing, *layers[name]), linear.bias
            bar.update()
    keep_freed_memory(False)  # gigabytes, of no use to what comes next
    return {name: done[name] for name in layers}


def position_weights(
    model: nn.Module, names: list[str], images: torch.Tensor, seed: int = 0
) -> dict[str, torch.Tensor]:
    """How much each position of each named layer's output matters: (N, positions), with a mean of one.

    Mean IoU gives every class the same weight, so a pixel counts by one over the root of its predicted class's
    frequency. One backward pass an image. Layers that the model does not call are missing.
    """
    with torch.no_grad():
        predicted = torch.cat([model(image).logits.argmax(1) for image in images.split(1)])
    rarity = predicted.flatten().bincount().clamp_min(1).rsqrt()
    found: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)

    def watch(name: str):
        def hook(_module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
            def keep(gradient: torch.Tensor) -> None:
                seen[name] = gradient.norm(dim=-1).flatten()  # of several calls, backward comes to the first last

            if output.requires_grad:  # not where the image has no part in it
                output.register_hook(keep)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with progress(total=len(images), desc="importance", unit="image") as bar:
            for image, classes in zip(images.split(1), predicted, strict=True):
                seen: dict[str, torch.Tensor] = {}
                logits = model(image.detach().requires_grad_()).logits[0].flatten(1).T
                drawn = torch.multinomial(logits.detach().cpu().softmax(1), 1, generator=generator)[:, 0]
                losses = F.cross_entropy(logits, drawn.to(logits.device), reduction="none")
                (losses * rarity[classes.flatten()]).sum().backward()
                for name, weights in seen.items():
                    found.setdefault(name, []).append(weights)
                bar.update()
    finally:
        for handle in handles:
            handle.remove()
    joined = {name: torch.stack(parts) for name, parts in found.items()}
    return {name: w / w.mean() if w.mean() > 0 else torch.ones_like(w) for name, w in joined.items()}


def _solve(
    linear: nn.Linear, now: torch.Tensor, exact: torch.Tensor, importance: torch.Tensor, bits: int, group_size: int
) -> tuple[Codes, torch.Tensor | None]:
    """Codes and bias of one layer from its inputs so far, `now`, and the float model's, `exact`."""
    columns, images = linear.in_features, len(importance)
    weights = importance / importance.sum()
    parts = [
        (w[:, None], x.reshape(-1, columns), y.reshape(-1, columns))
        for w, x, y in zip(weights, now.chunk(images), exact.chunk(images), strict=True)
    ]
    mean_now, mean_exact = sum((w * x).sum(0) for w, x, _ in parts), sum((w * y).sum(0) for w, _, y in parts)
    # A bias takes the mean error on itself, and the weights need not.
    center_now, center_exact = (mean_now, mean_exact) if linear.bias is not None else (0.0, 0.0)
    hessian, cross = now.new_zeros(columns, columns), now.new_zeros(columns, columns)
    for w, x, y in parts:  # an image at a time: the products' memory
        x = x - center_now
        weighted = (w * x).T
        hessian += weighted @ x
        cross += weighted @ (y - center_exact)
    damped = torch.eye(columns, device=now.device) * (DAMPING * hessian.diagonal().mean()).clamp_min(1e-12)
    # The float weight that would give the float outputs from the inputs so far
    wanted = torch.linalg.solve((hessian + damped).double(), ((cross + damped) @ linear.weight.T).double())
    codes = quantize_weight(wanted.T.to(linear.weight.dtype).contiguous(), hessian, bits, group_size, damping=DAMPING)
    if linear.bias is None:
        return codes, None
    return codes, as_float16(linear.bias + linear.weight @ mean_exact - dequantize(codes) @ mean_now)
