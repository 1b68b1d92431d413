"""Every engine behind one interface: `load` an artifact, or `load_graph` an ONNX file, and `model(pixels).logits`.

An engine other than PyTorch is a module of this package, found by its name in `base/recipes.py`, that has NAME (for
people), PACKAGES (which it needs, its own last) and `start(path, compute)`.
"""

from __future__ import annotations

import importlib
import logging
import time
from pathlib import Path

import torch
from torch import nn

from segquant.base.errors import ModelError, UnavailableError, one_line
from segquant.base.files import is_lfs_pointer, read_json
from segquant.base.recipes import COMPUTES, ENGINES
from segquant.engines.extras import needs, refused_compute
from segquant.engines.runtime import CLASSES, End, Runtime, read_metadata
from segquant.models import MAX_CLASSES, check_names
from segquant.quant import artifacts
from segquant.quant.artifacts import Artifact, check_present, describe_artifact, intact

log = logging.getLogger(__name__)
FLOATS = {"tensor(float)": torch.float32, "f32": torch.float32, "tensor(float16)": torch.float16, "f16": torch.float16}
GRAPHS = ("model.onnx", "model.xml")  # of an artifact, whichever is there


def load(source: str | Path, device: torch.device | str = "cpu") -> Artifact:
    """Load an artifact of any engine; PyTorch's go to `device`, graphs run on the CPU.

    Raises as `quant.artifacts.load_artifact`, and UnavailableError where the engine is not installed or the processor
    lacks the recipe's `compute`.
    """
    info = describe_artifact(source)
    recipe = info["recipe"]
    if "engine" not in recipe:
        return artifacts.load_artifact(source, device)
    check_present(source, info)
    intact(source, info)
    files = [name for name in GRAPHS if name in info["files"]]
    if recipe["engine"] not in ENGINES or recipe.get("compute") not in COMPUTES or len(files) != 1:
        raise ModelError(f"{source} has no graph for an engine of {', '.join(ENGINES)}: quantize again")
    engine = importlib.import_module(f"segquant.engines.{recipe['engine']}")
    needs(engine.PACKAGES[-1])  # its import is no part of the load time: PyTorch is imported too
    if words := refused_compute(recipe["compute"]):
        raise UnavailableError(words)
    start = time.perf_counter()
    paths = [Path(source) / name for name in info["files"] if name.startswith("model.")]
    model = load_graph(Path(source) / files[0], recipe["engine"], recipe["compute"])
    seconds, size = time.perf_counter() - start, sum(path.stat().st_size for path in paths)
    model.config.id2label = _names(source, model.config.num_labels)
    log.info("loaded %s: %.2f MB on disk, %.2f s, %s %s", source, size / 1e6, seconds, model.engine, model.version)
    return Artifact(model, info, size, seconds)


def _names(source: str | Path, classes: int) -> dict[int, str]:
    """The names in the config.json of a graph's artifact. Raises ModelError unless each class has one of its own."""
    config = read_json(Path(source) / "config.json")
    names = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(names, dict) or set(names) != set(map(str, range(classes))):
        raise ModelError(f"{source} has no id2label for the graph's {classes} classes in config.json: quantize again")
    check_names(source, names.values())
    return {int(number): str(name) for number, name in names.items()}


def load_quantized(source: str | Path, device: torch.device | str = "cpu", **pinned: str | None) -> nn.Module:
    """`quant.artifacts.load_quantized`, for artifacts of every engine."""
    if Path(source).is_dir():
        return artifacts.takes_floats(load(source, device).model)
    return artifacts.load_quantized(source, device, **pinned)


def start(path: Path, engine: str, compute: str = "float32") -> tuple[Runtime, list[End], list[End]]:
    """The graph in a file on an engine, with its inputs and outputs, which may be of any kind.

    Raises UnavailableError where the engine is not installed, and what the engine does for a file that it cannot read.
    """
    return importlib.import_module(f"segquant.engines.{engine}").start(path, compute)


def load_graph(path: str | Path, engine: str = "onnxruntime", compute: str = "float32") -> Runtime:
    """The graph in a file on `engine`, with as many threads as PyTorch has.

    `compute` is OpenVINO's type for floats: float32, or bfloat16 on processors that have it. Raises ModelError for a
    file that is no SegFormer's or that the engine cannot read, UnavailableError where the engine is not installed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ModelError(f"{path} {what}: give an ONNX file")
    if is_lfs_pointer(path):
        raise ModelError(f"{path} is a Git LFS pointer: run git lfs pull")
    try:
        model, inputs, outputs = start(path, engine, compute)
    except (UnavailableError, ModelError):
        raise
    except Exception as error:  # engines raise many types
        raise ModelError(f"{engine} cannot load {path}: {one_line(error, end=True)}") from error
    fits = len(inputs) == len(outputs) == 1 and [len(end.shape) for end in (*inputs, *outputs)] == [4, 4]
    if not fits or inputs[0].kind not in FLOATS or (isinstance(inputs[0].shape[1], int) and inputs[0].shape[1] != 3):
        if [name for name, _, _ in outputs] == [CLASSES]:
            raise ModelError(f"{path} gives class maps: export it without --classes, as scores are of logits")
        ends = "; ".join(f"{name} {kind} {shape}" for name, kind, shape in (*inputs, *outputs))
        raise ModelError(
            f"{path} is not a SegFormer's graph: it must take pixels (B, 3, H, W), floats of 32 or 16 bits, and give "
            f"logits (B, C, h, w), not {ends[:200]}"
        )
    sizes, classes = inputs[0].shape, outputs[0].shape[1]
    if outputs[0].kind not in FLOATS or classes == 1:
        raise ModelError(
            f"{path} gives {outputs[0].kind} {outputs[0].shape}, class maps or a single class: scores need the logits "
            "of each class, as floats (B, C, h, w)"
        )
    model.size = tuple(sizes[2:]) if all(isinstance(size, int) for size in sizes[2:]) else None
    model.batch = sizes[0] if isinstance(sizes[0], int) else None
    model.dtype = FLOATS[inputs[0].kind]
    if not isinstance(classes, int):
        known = [size if isinstance(size, int) else usual for size, usual in zip(sizes, (1, 3, 64, 64))]
        classes = model.logits(torch.zeros(known)).shape[1]
    if not 2 <= classes <= MAX_CLASSES:
        raise ModelError(f"{path} has {classes} classes: 2 to {MAX_CLASSES} work")
    model.config.num_labels = classes
    read_metadata(model, path)
    return model
