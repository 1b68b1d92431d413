"""Write the float model as ONNX files, checked against PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base.errors import ConfigError
from segquant.base.output import holds_anything
from segquant.base.text import say, say_json
from segquant.commands.shared import NEW_FOLDER, add_model


def options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--opset", type=int, help="opset of the graph (default: 20)")
    parser.add_argument(
        "--classes", action="store_true", help="output class maps at the size of the input instead of logits"
    )
    parser.add_argument("--output", required=True, type=Path, help=NEW_FOLDER)


def main(arguments: argparse.Namespace) -> None:
    from segquant.base.hub import locate
    from segquant.deploy.graph import OPSET
    from segquant.deploy.onnx_export import PRECISIONS, export_onnx

    if holds_anything(arguments.output):
        raise ConfigError(f"{arguments.output} exists: give a new folder, or remove that one first")
    folder = locate(arguments.model, arguments.revision, arguments.sha256)
    opset = OPSET if arguments.opset is None else arguments.opset
    files = export_onnx(folder, arguments.output, opset, arguments.classes)
    if arguments.json:
        say_json(files)
        return
    for precision in PRECISIONS:
        file = files[precision]
        logits = f"logits within {file['difference']:.1e} of PyTorch's, " if "difference" in file else ""
        path = arguments.output / f"{precision}.onnx"
        say(f"{path}: {file['bytes'] / 1e6:.2f} MB, {logits}{file['agreement']:.2%} of pixels in the same class")
