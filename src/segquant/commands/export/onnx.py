"""Write a float model or an artifact as ONNX files, checked against PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base.errors import ConfigError
from segquant.base.output import check_new
from segquant.base.text import say, say_json
from segquant.commands.shared import ARTIFACT, MODEL, NEW_FOLDER, add_pins


def options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help=f"a float model: {MODEL}")
    source.add_argument("--artifact", type=Path, help=f"{ARTIFACT}: its codes keep their bits in the file")
    add_pins(parser)
    parser.add_argument("--opset", type=int, help="opset of the graph (default: 20)")
    parser.add_argument(
        "--classes", action="store_true", help="output class maps at the size of the input instead of logits"
    )
    parser.add_argument("--output", required=True, type=Path, help=NEW_FOLDER)


def main(arguments: argparse.Namespace) -> None:
    from segquant.base.hub import locate
    from segquant.base.recipes import ENGINES
    from segquant.deploy.graph import OPSET
    from segquant.deploy.onnx_export import PRECISIONS, export_artifact, export_onnx

    check_new(arguments.output, [arguments.artifact or arguments.model])
    if arguments.artifact and (arguments.revision, arguments.sha256) != (None, None):
        raise ConfigError("--revision and --sha256 are of a --model from elsewhere: leave them out")
    written = (arguments.output, OPSET if arguments.opset is None else arguments.opset, arguments.classes)
    if arguments.artifact:
        files = export_artifact(arguments.artifact, *written)
    else:
        files = export_onnx(locate(arguments.model, arguments.revision, arguments.sha256), *written)
    if arguments.json:
        say_json(files)
        return
    if arguments.artifact:
        for engine in [name for name in ENGINES if name in files]:
            _say(arguments.output / "model.onnx", {**files, **files[engine]}, f" on {engine}")
        return
    for precision in PRECISIONS:
        _say(arguments.output / f"{precision}.onnx", files[precision])


def _say(path: Path, file: dict, where: str = "") -> None:
    logits = f"logits within {file['difference']:.1e} of PyTorch's, " if "difference" in file else ""
    say(f"{path}: {file['bytes'] / 1e6:.2f} MB, {logits}{file['agreement']:.2%} of pixels in the same class{where}")
