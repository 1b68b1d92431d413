"""Linear layers whose activations are float8: torchao's kernels with a scale a row take and give bfloat16 alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from segquant.quant.tensors import is_quantized, quantizes_activations


class Float8Linear(nn.Linear):
    """A Linear layer that computes its product in bfloat16 and adds its bias in the model's own dtype."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = F.linear(inputs.to(torch.bfloat16), self.weight).to(inputs.dtype)
        return outputs if self.bias is None else outputs + self.bias


def takes_float8(weight: torch.Tensor) -> bool:
    """Whether a product of float8 operands exists for a weight (rows, columns): both are multiples of 16."""
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def to_bfloat16(model: nn.Module, names: Iterable[str]) -> None:
    """Cast the weights of the named Linear layers that a float8 product exists for, in place."""
    for name in names:
        linear = model.get_submodule(name)
        if takes_float8(linear.weight):
            linear.weight = nn.Parameter(linear.weight.to(torch.bfloat16), requires_grad=False)


def compute_in_bfloat16(model: nn.Module) -> None:
    """Replace the Linear layers of `model` with float8 activations by Float8Linear, in place."""
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or not is_quantized(linear.weight):
            continue
        if linear.weight.dtype == torch.bfloat16 and quantizes_activations(linear.weight):
            new = Float8Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            new.weight, new.bias = linear.weight, linear.bias
            model.set_submodule(name, new)
