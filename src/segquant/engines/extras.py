"""What graphs need and refuse: packages that are imported where they are used, and sizes in multiples of 32."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from segquant.base.config import FIXED_PROTOCOL, Graph, Packed
from segquant.base.errors import UnavailableError
from segquant.base.failures import missing
from segquant.base.files import read_json
from segquant.base.hardware import BFLOAT16, instructions

STEP = 32  # what the stages of a SegFormer divide height and width by
_EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}  # as in pyproject.toml


def needs(*modules: str) -> ModuleType:
    """The first of `modules`, all of which are there. Raises UnavailableError with what to install."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        extras = [f"'segquant[{name}]'" for name in ("openvino", "onnx") if not set(missing).isdisjoint(_EXTRAS[name])]
        install = extras[0] if extras else " ".join(missing)
        raise UnavailableError(f"{' and '.join(missing)} not installed: pip install {install}")
    return importlib.import_module(modules[0])


def refused_protocol(protocol: str) -> str | None:
    """Why graphs cannot take the inputs of a protocol, or None when they can."""
    fixed = FIXED_PROTOCOL.fullmatch(protocol)
    return _refused(f"protocol {protocol}", map(int, fixed.groups())) if fixed else None


def refused_size(size: Sequence[int]) -> str | None:
    """Why the speed of graphs cannot be measured on inputs of `size` (height, width) in pixels, or None when it can."""
    return _refused(f"speed.input_size {'x'.join(map(str, size))}", size)


def _refused(name: str, sizes: Iterable[int]) -> str | None:
    if any(size % STEP for size in sizes):
        return f"graphs take heights and widths in multiples of {STEP}, not {name}: choose such a size"
    return None


def unavailable(recipe: Graph | Packed) -> str | None:
    """Why `recipe` cannot run here, or None when it can."""
    packages = importlib.import_module(f"segquant.engines.{recipe.engine}").PACKAGES
    try:
        needs(*packages, *(["nncf"] if recipe.algorithm == "nncf" else []))
    except UnavailableError as error:
        return str(error)
    return refused_compute(recipe.compute)


def refused_compute(compute: str) -> str | None:
    """Why this processor does not compute in a type of floats, or None when it does."""
    if compute == "bfloat16" and BFLOAT16.isdisjoint(instructions()):
        return "compute bfloat16 needs a processor that has it (avx512_bf16, amx_bf16 or bf16)"
    return None


def exports_lack(exports: str | Path, precision: str = "float32") -> dict[str, str]:
    """Why the folder that `write_exports` wrote has no graph of a precision (`failures.missing`), {} where it has."""
    summary = read_json(Path(exports) / "export.json")
    return missing(summary) or missing(summary[precision])
