"""Write a quantized model as a folder that transformers loads without segquant."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base.text import say, say_json
from segquant.commands.shared import ARTIFACT, NEW_FOLDER


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--artifact", required=True, type=Path, help=ARTIFACT)
    parser.add_argument("--output", required=True, type=Path, help=NEW_FOLDER)


def main(arguments: argparse.Namespace) -> None:
    from segquant.deploy.transformers_folder import export_transformers

    size = export_transformers(arguments.artifact, arguments.output)
    if arguments.json:
        say_json({"bytes": size}, indent=None)
        return
    model = "AutoModelForSemanticSegmentation.from_pretrained"
    say(f"{arguments.output}: {size / 1e6:.2f} MB of weights, for {model}")
