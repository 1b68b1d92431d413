"""Packages that only graphs need, imported where they are used; which one to install where it is missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from segquant.config import Graph
from segquant.errors import UnavailableError

_EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}  # as in pyproject.toml


def needs(*modules: str) -> ModuleType:
    """The first of `modules`, all of which are there. Raises UnavailableError with what to install."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        extra = next(extra for extra, names in _EXTRAS.items() if missing[0] in names)
        raise UnavailableError(f"{' and '.join(missing)} not installed: pip install 'segquant[{extra}]'")
    return importlib.import_module(modules[0])


def unavailable(recipe: Graph) -> str | None:
    """Why `recipe` cannot run here, or None when it can."""
    wanted = [*_EXTRAS["onnx"], *(["openvino"] if recipe.engine == "openvino" else [])]
    try:
        needs(*wanted, *(["nncf"] if recipe.algorithm == "nncf" else []))
    except UnavailableError as error:
        return str(error)
    return None
