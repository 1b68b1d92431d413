"""Score an ONNX file of any SegFormer."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base import config
from segquant.base.text import say, say_json
from segquant.commands.shared import DATA, LABEL_MAP, add_limit, add_protocol, add_split

_NAMES = ("onnx", "data", "split", "engine", "label_map", "protocol", "limit")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("onnx", type=Path, help="ONNX file: pixels (B, 3, H, W) in, logits (B, C, h, w) out")
    parser.add_argument("--data", required=True, help=DATA)
    add_split(parser)
    parser.add_argument(
        "--engine", choices=config.ENGINES, default=config.ENGINES[0], help="what runs the file (default: %(default)s)"
    )
    parser.add_argument("--label-map", help=LABEL_MAP)
    add_protocol(parser)
    add_limit(parser)


def main(arguments: argparse.Namespace) -> None:
    from segquant.evaluation.graph_file import score_graph

    scores = score_graph(config.load(arguments.params), **{name: getattr(arguments, name) for name in _NAMES})
    if arguments.json:
        say_json(scores)
        return
    headings = {"mean_iou": "mIoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
    accuracy = ", ".join(f"{heading} {100 * scores[key]:.2f} %" for key, heading in headings.items())
    skipped = f", {len(scores['skipped'])} skipped" if "skipped" in scores else ""
    images = f"{scores['n_images']} images{skipped}"
    say(f"{arguments.onnx}: {accuracy} ({scores['protocol']}, {images}, {scores['engine']})")
