"""How far an error in the weights moves a model's prediction, estimated without changing the weights.

For a small error of the weights, the divergence of a prediction from the float model's, KL(float || changed), is half
of the mean square of <gradient, error>, where the gradient is that of the log-likelihood of classes which are sampled
from the float model's own prediction: half the error's length in the Fisher information. The products for several
layers add up to that of all their errors together, so that they also show how much errors of layers interact.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from segquant.base.progress import progress

SAMPLES = 2  # of classes, an image


def influence(
    model: nn.Module, images: torch.Tensor, errors: Mapping[str, torch.Tensor], seed: int = 0
) -> dict[str, torch.Tensor]:
    """<gradient, error> for each sample of each image, over the root of twice the number of the logits' pixels.

    `images` (N, 3, H, W) are model inputs. `errors` (candidates, rows, columns) are those of the named layers' weights,
    where a convolution's is a matrix. The result for a layer is float64 (candidates, samples): the mean square over the
    samples is the divergence of each candidate in nats a pixel. A layer that the model does not call has zeros.
    """
    weights = [model.get_submodule(name).weight for name in errors]
    products: dict[str, list[torch.Tensor]] = {name: [] for name in errors}
    generator = torch.Generator().manual_seed(seed)
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with progress(total=len(images), desc="influence", unit="image") as bar:
            for image in images.split(1):
                logits = model(image.detach().requires_grad_()).logits[0].flatten(1).T
                probabilities = logits.detach().cpu().softmax(1)
                for left in reversed(range(SAMPLES)):
                    sampled = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
                    loss = F.cross_entropy(logits, sampled, reduction="sum") / (2 * len(logits)) ** 0.5
                    gradients = torch.autograd.grad(loss, weights, retain_graph=left > 0, allow_unused=True)
                    for name, gradient in zip(errors, gradients, strict=True):
                        products[name].append(_products(errors[name], gradient))
                bar.update()
    finally:
        for parameter, value in required:
            parameter.requires_grad_(value)
    return {name: torch.stack(values, 1) for name, values in products.items()}


def _products(errors: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
    """(candidates,) products of errors (candidates, rows, columns) with a gradient."""
    if gradient is None:
        return torch.zeros(len(errors), dtype=torch.float64)
    return torch.stack([(error * gradient.flatten(1)).sum(dtype=torch.float64) for error in errors]).cpu()
