"""What torchao's quantized tensors have in common, and what float16 can hold."""

from __future__ import annotations

import torch

CASTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # weights that are cast, not quantized


def is_quantized(weight: torch.Tensor | None) -> bool:
    return hasattr(weight, "qdata")


def quantizes_activations(weight: torch.Tensor) -> bool:
    """Whether a product with `weight` quantizes the other operand too, as it comes."""
    return bool(getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None))


def bits(weight: torch.Tensor) -> int:
    """Bits of a quantized tensor's codes: of int4 in torchao's IntxUnpackedToInt8Tensor 4, though in a byte each."""
    target = getattr(weight, "target_dtype", None)
    return 8 * weight.qdata.itemsize if target is None else int(dtype_name(target).removeprefix("int"))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def as_float16(values: torch.Tensor) -> torch.Tensor:
    """`values` rounded to what float16 holds, in their own dtype; as they are where that would cost accuracy.

    That is where one moves by more than 0.1 % of the largest: beyond 65504, or when all are tiny.
    """
    rounded = values.half().to(values.dtype)
    moved = (rounded - values).abs()
    return rounded if bool((moved <= 1e-3 * values.abs().max()).all()) else values


def narrowed(values: torch.Tensor) -> torch.Tensor:
    """float32 as float16 where that is exact."""
    if values.dtype != torch.float32:
        return values
    narrow = values.half()
    return narrow if torch.equal(narrow.float(), values) else values
