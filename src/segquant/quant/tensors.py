"""Helpers for torchao's quantized tensors, for rounding to float16, and for values that are no numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from segquant.base.errors import ModelError

CASTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # weights that are cast, not quantized


def is_quantized(weight: torch.Tensor | None) -> bool:
    return hasattr(weight, "qdata")


def floats_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The scales and zeros of a quantized tensor; any other tensor itself."""
    if not is_quantized(tensor):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.tensor_data_names if name != "qdata"]


def quantizes_activations(weight: torch.Tensor) -> bool:
    """Whether a product with `weight` also quantizes the other operand at run time."""
    return bool(getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None))


def bits(weight: torch.Tensor) -> int:
    """Bits of a quantized tensor's codes: 4 for int4, although IntxUnpackedToInt8Tensor holds each code in a byte."""
    target = getattr(weight, "target_dtype", None)
    return 8 * weight.qdata.itemsize if target is None else int(dtype_name(target).removeprefix("int"))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def finite(values: torch.Tensor, what: str) -> torch.Tensor:
    """`values`, where all are numbers. Raises ModelError elsewhere: the argmax of NaN is a class like any other."""
    if not values.sum().isfinite() and not values.isfinite().all():  # the sum takes a tenth of the time
        raise ModelError(f"{what} gives logits that are no numbers")
    return values


def as_float16(values: torch.Tensor) -> torch.Tensor:
    """Round `values` to float16 and return them in their own dtype, or unchanged where that would cost accuracy.

    They stay unchanged when any value would move by more than 0.1 % of the largest: beyond float16's maximum of
    65504, or when all values are tiny.
    """
    rounded = values.half().to(values.dtype)
    moved = (rounded - values).abs()
    return rounded if bool((moved <= 1e-3 * values.abs().max()).all()) else values


def round_to_float16(tensors: Iterable[torch.Tensor]) -> None:
    """Round the floats among `tensors` in place to the values that an artifact stores (`as_float16`)."""
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data.copy_(as_float16(tensor.data))


def narrowed(values: torch.Tensor) -> torch.Tensor:
    """Convert float32 to float16 where that is exact; return anything else unchanged."""
    if values.dtype != torch.float32:
        return values
    narrow = values.half()
    return narrow if torch.equal(narrow.float(), values) else values
