"""Linear layers with float8 activations: torchao's kernels with one scale per row accept and return bfloat16 only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from segquant.quant.tensors import is_quantized, quantizes_activations


class Float8Linear(nn.Linear):
    """A Linear layer that computes its product in bfloat16 and adds its bias in the dtype of its inputs."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = F.linear(inputs.to(torch.bfloat16), self.weight).to(inputs.dtype)
        return outputs if self.bias is None else outputs + self.bias


def takes_float8(weight: torch.Tensor) -> bool:
    """Whether the float8 kernel supports a weight (rows, columns): both sides must be multiples of 16."""
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def to_bfloat16(model: nn.Module, names: Iterable[str]) -> None:
    """Cast the weights of the named Linear layers to bfloat16 where the float8 kernel supports them, in place."""
    for name in names:
        linear = model.get_submodule(name)
        if takes_float8(linear.weight):
            linear.weight = nn.Parameter(linear.weight.to(torch.bfloat16), requires_grad=False)


def compute_in_bfloat16(model: nn.Module) -> None:
    """Replace every Linear layer that has float8 activations with a Float8Linear, in place."""
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or not is_quantized(linear.weight):
            continue
        if linear.weight.dtype == torch.bfloat16 and quantizes_activations(linear.weight):
            replacement = Float8Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            replacement.weight, replacement.bias = linear.weight, linear.bias
            model.set_submodule(name, replacement)
