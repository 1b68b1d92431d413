"""The segquant command: its options, in one place. What they do is in commands.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich_argparse import RawDescriptionRichHelpFormatter

import segquant
from segquant import commands
from segquant.base import config
from segquant.base.entry import run as entry

_DATA = "'scenes', a labelled folder, a zip archive, a folder of Parquet files or a hub id"
_LABEL_MAP = "YAML file from the model's class ids to the data set's"
_PROTOCOL = "aligned-512-v1 or fixed-HxW-v1 (default: params.yaml's)"
_EPILOG = """\
examples:
  segquant run --model DIR --data DIR --split val --methods float32,int8,int4 --output out/
  segquant predict photos/*.jpg --artifact models/quantized/int4 --output overlays/
  segquant compare int4 int2

exit codes:
  0    done
  2    something given is wrong or missing; one line on stderr says what, where and what to do
  3    review: a method lost more accuracy than review.max_drop
  130  interrupted
  141  who read the output has left, as `head` does

The pipeline is DVC's: `dvc repro` builds and measures what changed (README.md)."""


def _help(prog: str) -> RawDescriptionRichHelpFormatter:
    return RawDescriptionRichHelpFormatter(prog, max_help_position=24)


def cli() -> None:
    """Entry point: exits with one of the codes above."""
    arguments = parser().parse_args()
    entry(lambda: arguments.call(arguments))


def parser() -> argparse.ArgumentParser:
    """Every command, with `call` set to what carries it out."""
    whole = argparse.ArgumentParser(
        prog="segquant",
        description=segquant.__doc__,
        epilog=_EPILOG,
        formatter_class=_help,
    )
    whole.add_argument("--version", action="version", version=f"segquant {segquant.__version__}")
    subparsers = whole.add_subparsers(required=True, metavar="COMMAND [OPTIONS]", title="commands")
    common = argparse.ArgumentParser(add_help=False)
    shared = common.add_argument_group("shared options")
    shared.add_argument(
        "--params", type=Path, help="configuration file (default: ./params.yaml, else the repository's)"
    )
    shared.add_argument("--verbose", action="store_true", help="log more, to stderr")
    shared.add_argument("--json", action="store_true", help="print JSON, for programs")

    def command(name: str, call: Any, words: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = subparsers.add_parser(
            name,
            parents=[*parents, common],
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            formatter_class=_help,
        )
        made.set_defaults(call=call)
        return made

    scored = argparse.ArgumentParser(add_help=False)
    scored.add_argument("--model", required=True, help="folder, hub id (owner/name), or https URL of safetensors")
    scored.add_argument("--revision", help="of a hub id: commit, tag or branch")
    scored.add_argument("--sha256", help="of the file behind a URL")
    scored.add_argument("--split", required=True, help="which split to score on, such as val")
    scored.add_argument("--protocol", help=_PROTOCOL)
    scored.add_argument("--output", required=True, type=Path, help="folder for what is found, made where missing")

    built = argparse.ArgumentParser(add_help=False)
    built.add_argument("--data", required=True, action="append", help=f"{_DATA}; given again: another, scored apart")
    built.add_argument(
        "--label-map", action="append", help=f"{_LABEL_MAP}; given again: one for each --data in turn, or none"
    )
    built.add_argument("--train-data", help="where images to calibrate and train on are (default: the first --data)")
    built.add_argument("--train-split", default="train", help="the split of it (default: train)")

    run = command("run", commands.run, "benchmark a model on labelled images, without DVC", scored, built)
    run.add_argument("--methods", help="comma list of names under quant.methods (default: all)")
    run.add_argument("--limit", type=int, help="score on the first N images only")

    predict = command("predict", commands.predict, "lay an artifact's predictions over photographs, with a legend")
    predict.add_argument("pictures", nargs="+", help="files, folders, or patterns such as 'photos/**/*.jpg'")
    predict.add_argument("--artifact", required=True, type=Path, help="folder such as models/quantized/int4")
    predict.add_argument("--protocol", help=_PROTOCOL)
    predict.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder for the overlays (default: predictions)"
    )

    command("methods", commands.methods, "list every method and whether it runs here")

    compare = command("compare", commands.compare, "tell two results apart, with intervals over images")
    for name in ("first", "second"):
        compare.add_argument(name, help="method, or the Parquet file with the confusion of a result's images")
    compare.add_argument(
        "--metrics",
        type=Path,
        default=Path("metrics"),
        help="where methods' results are: of dvc repro (default: metrics) or the --output of segquant run",
    )

    report = command("report", commands.report, "print the table of the last dvc repro, and what to ship")
    report.add_argument("--metrics", type=Path, default=Path("metrics"), help="default: metrics")

    review = command("review", commands.review, "tell what dvc repro changed against a Git revision, as Markdown")
    review.add_argument("--base", default="main", help="the revision (default: main)")
    review.add_argument("--metrics", type=Path, default=Path("metrics"), help="default: metrics")
    review.add_argument("--output", type=Path, help="file for the Markdown (default: print it)")

    alone = command("sensitivity", commands.sensitivity, "quantize each layer alone and score it", scored)
    alone.add_argument("--data", required=True, help=_DATA)
    alone.add_argument("--label-map", help=_LABEL_MAP)
    alone.add_argument("--bits", help="comma list of 2, 3, 4 and 8 (default: params.yaml's)")
    alone.add_argument("--limit", type=int, help="score on the first N images (default: params.yaml's)")

    export = command("export", commands.export, "write a model in a form other programs load")
    export.add_argument("--format", required=True, choices=["onnx", "transformers"])
    export.add_argument("--model", help="onnx: the float model, a folder, hub id or https URL")
    export.add_argument("--revision", help="onnx: of a hub id, its commit, tag or branch")
    export.add_argument("--sha256", help="onnx: of the file behind a URL")
    export.add_argument("--opset", type=int, help="onnx: of the graph (default: 20)")
    export.add_argument("--classes", action="store_true", help="onnx: class maps at the input's size instead of logits")
    export.add_argument("--artifact", help="transformers: folder such as models/quantized/int8")
    export.add_argument("--output", required=True, type=Path, help="folder, which must not be there yet")

    pt2e = command("pt2e", commands.pt2e, "make a validated int8 ONNX file, calibrated or trained", scored, built)
    pt2e.add_argument(
        "--epochs", type=int, default=0, help="of quantization-aware training, without labels (default: 0, none)"
    )
    pt2e.add_argument(
        "--num-calibration-samples", type=int, default=100, help="images of the train split (default: 100)"
    )
    pt2e.add_argument(
        "--num-samples-per-dataset", dest="limit", type=int, help="score on the first N images of each (default: all)"
    )

    score = command("evaluate", commands.evaluate, "score an ONNX file of any SegFormer")
    score.add_argument("onnx", type=Path, help="the file, from pixels (B, 3, H, W) to logits (B, C, h, w)")
    score.add_argument("--data", required=True, help=_DATA)
    score.add_argument("--split", required=True, help="which split to score on, such as val")
    score.add_argument("--engine", choices=config.ENGINES, default=config.ENGINES[0], help="default: %(default)s")
    score.add_argument("--label-map", help=_LABEL_MAP)
    score.add_argument("--protocol", help=_PROTOCOL)
    score.add_argument("--limit", type=int, help="score on the first N images only")

    fetch = command("fetch-data", commands.fetch_data, "fetch a published data set, verify and unpack it")
    fetch.add_argument("name", help="ade20k: Scene Parse 150, 0.97 GB")
    fetch.add_argument("--output", type=Path, default=Path("data/raw"), help="folder for it (default: data/raw)")
    return whole
