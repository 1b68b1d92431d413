"""The segquant command."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import segquant
from segquant import config
from segquant.entry import run as entry
from segquant.errors import ConfigError, UnavailableError
from segquant.files import read_json

_DATA = "'scenes', a labelled folder, a zip archive, a folder of Parquet files or a hub id"
_LABEL_MAP = "YAML file from the model's class ids to the data set's"


def cli() -> None:
    """Entry point: exits 0, or 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(prog="segquant", description=segquant.__doc__)
    parser.add_argument("--version", action="version", version=segquant.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--params", type=Path, help="configuration file (default: ./params.yaml, else the repository's)"
    )
    common.add_argument("--verbose", action="store_true", help="log more")
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")

    scored = argparse.ArgumentParser(add_help=False)
    scored.add_argument("--model", required=True, help="folder, hub id (owner/name), or https URL of safetensors")
    scored.add_argument("--revision", help="of a hub id: commit, tag or branch")
    scored.add_argument("--sha256", help="of the file behind a URL")
    scored.add_argument("--split", required=True, help="which split to score on, such as val")
    scored.add_argument("--protocol", help="aligned-512-v1 or fixed-HxW-v1 (default: params.yaml's)")
    scored.add_argument("--output", required=True, type=Path, help="folder for what is found, made where missing")

    built = argparse.ArgumentParser(add_help=False)
    built.add_argument("--data", required=True, action="append", help=f"{_DATA}; given again: another, scored apart")
    built.add_argument(
        "--label-map", action="append", help=f"{_LABEL_MAP}; given again: one for each --data in turn, or none"
    )
    built.add_argument("--train-data", help="where images to calibrate and train on are (default: the first --data)")
    built.add_argument("--train-split", default="train", help="the split of it (default: train)")

    run = commands.add_parser(
        "run", parents=[common, scored, built], help="benchmark a model on a labelled folder, no DVC"
    )
    run.set_defaults(call=_run)
    run.add_argument("--methods", help="comma list of names under quant.methods (default: all)")
    run.add_argument("--limit", type=int, help="score on the first N images only")

    pt2e = commands.add_parser(
        "pt2e", parents=[common, scored, built], help="float32 to a validated int8 ONNX file, calibrated or trained"
    )
    pt2e.set_defaults(call=_pt2e)
    pt2e.add_argument(
        "--epochs", type=int, default=0, help="of quantization-aware training, without labels (default: 0, none)"
    )
    pt2e.add_argument(
        "--num-calibration-samples", type=int, default=100, help="images of the train split (default: 100)"
    )
    pt2e.add_argument(
        "--num-samples-per-dataset", dest="limit", type=int, help="score on the first N images of each (default: all)"
    )

    score = commands.add_parser("evaluate", parents=[common], help="score an ONNX file of any SegFormer")
    score.set_defaults(call=_evaluate)
    score.add_argument("onnx", type=Path, help="the file, from pixels (B, 3, H, W) to logits (B, C, h, w)")
    score.add_argument("--data", required=True, help=_DATA)
    score.add_argument("--split", required=True, help="which split to score on, such as val")
    score.add_argument("--engine", choices=config.ENGINES, default=config.ENGINES[0], help="default: %(default)s")
    score.add_argument("--label-map", help=_LABEL_MAP)
    score.add_argument("--protocol", help="aligned-512-v1 or fixed-HxW-v1 (default: params.yaml's)")
    score.add_argument("--limit", type=int, help="score on the first N images only")

    alone = commands.add_parser("sensitivity", parents=[common, scored], help="quantize each layer alone and score it")
    alone.set_defaults(call=_sensitivity)
    alone.add_argument("--data", required=True, help=_DATA)
    alone.add_argument("--label-map", help=_LABEL_MAP)
    alone.add_argument("--bits", help="comma list of 2, 3, 4 and 8 (default: params.yaml's)")
    alone.add_argument("--limit", type=int, help="score on the first N images (default: params.yaml's)")

    fetch = commands.add_parser("fetch-data", parents=[common], help="fetch a published data set, verify and unpack it")
    fetch.set_defaults(call=_fetch_data)
    fetch.add_argument("name", help="ade20k: Scene Parse 150, 0.97 GB")
    fetch.add_argument("--output", type=Path, default=Path("data/raw"), help="folder for it (default: data/raw)")

    export = commands.add_parser("export", parents=[common], help="write a model in a form other programs load")
    export.set_defaults(call=_export)
    export.add_argument("--format", required=True, choices=["onnx", "transformers"])
    export.add_argument("--model", help="onnx: the float model, a folder, hub id or https URL")
    export.add_argument("--revision", help="onnx: of a hub id, its commit, tag or branch")
    export.add_argument("--sha256", help="onnx: of the file behind a URL")
    export.add_argument("--opset", type=int, help="onnx: of the graph (default: 20)")
    export.add_argument("--classes", action="store_true", help="onnx: class maps at the input's size instead of logits")
    export.add_argument("--artifact", help="transformers: folder such as models/quantized/int8")
    export.add_argument("--output", required=True, type=Path, help="folder, which must not be there yet")

    methods = commands.add_parser("methods", parents=[common], help="list every method and whether it runs here")
    methods.set_defaults(call=_methods)

    compare = commands.add_parser(
        "compare", parents=[common], help="two results' difference, with intervals over images"
    )
    compare.set_defaults(call=_compare)
    for name in ("first", "second"):
        compare.add_argument(name, help="method, or the Parquet file with the confusion of a result's images")
    compare.add_argument(
        "--metrics", type=Path, default=Path("metrics"),
        help="where methods' results are: of dvc repro (default: metrics) or the --output of segquant run",
    )  # fmt: skip

    report = commands.add_parser("report", parents=[common], help="print the table of the last dvc repro")
    report.set_defaults(call=_report)
    report.add_argument("--metrics", type=Path, default=Path("metrics"))

    arguments = parser.parse_args()
    entry(lambda: arguments.call(arguments))


def _scored(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that name a model, labelled data and where results go."""
    names = ("model", "revision", "sha256", "data", "split", "protocol", "output")
    return {name: getattr(arguments, name) for name in names}


def _at_least(least: int, option: str, value: int | None) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{option} must be at least {least}, not {value}")


def _run(arguments: argparse.Namespace) -> None:
    _at_least(1, "--limit", arguments.limit)
    params = config.load(arguments.params)
    _benchmark(arguments, params, [m.strip() for m in arguments.methods.split(",")] if arguments.methods else None)


def _pt2e(arguments: argparse.Namespace) -> None:
    from segquant.deploy.extras import refused_protocol, unavailable

    _at_least(0, "--epochs", arguments.epochs)
    _at_least(1, "--num-calibration-samples", arguments.num_calibration_samples)
    _at_least(1, "--num-samples-per-dataset", arguments.limit)
    params = config.load(arguments.params)
    calibration = config.Calibration(arguments.num_calibration_samples)
    static = config.Graph(engine="onnxruntime", weights="int8", algorithm="pt2e", calibration=calibration)
    if reason := unavailable(static):
        raise UnavailableError(reason)
    if reason := refused_protocol(arguments.protocol or params.protocol):
        raise ConfigError(reason)
    methods = {
        "float32": config.Recipe("float32"),
        "onnx_float32": config.Graph(engine="onnxruntime", weights="float32"),
        "int8_static": static,
    }
    if arguments.epochs:
        given = params.quant.methods.get("int8_static_qat")
        options = given.train if isinstance(given, config.Graph) and given.train else config.Finetune(epochs=1)
        methods["int8_static_qat"] = replace(static, train=replace(options, epochs=arguments.epochs))
    _benchmark(arguments, replace(params, quant=config.Quant("int8_static", methods)), None)
    if not arguments.json:
        print(f"ONNX: {arguments.output / list(methods)[-1] / 'model.onnx'}")


def _benchmark(arguments: argparse.Namespace, params: config.Params, methods: list[str] | None) -> None:
    from segquant.hardware import probe
    from segquant.report import tables
    from segquant.runs import run

    results = run(
        params,
        **_scored(arguments),
        label_maps=[None if one == "none" else one for one in arguments.label_map or ["none"]],
        methods=methods,
        limit=arguments.limit,
        train_data=arguments.train_data,
        train_split=arguments.train_split,
    )
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        if len(arguments.data) > 1:
            tables.show_several(results, probe())
        else:
            tables.show(results, probe())
        print(f"Results: {arguments.output / 'results.json'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from segquant.runs import score_onnx

    names = ("onnx", "data", "split", "engine", "label_map", "protocol", "limit")
    found = score_onnx(config.load(arguments.params), **{name: getattr(arguments, name) for name in names})
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    accuracy = ", ".join(
        f"{words} {100 * found[key]:.2f} %"
        for key, words in {
            "mean_iou": "mIoU",
            "mean_accuracy": "mean accuracy",
            "overall_accuracy": "pixel accuracy",
        }.items()
    )
    print(f"{arguments.onnx}: {accuracy} ({found['protocol']}, {found['n_images']} images, {found['engine']})")


def _sensitivity(arguments: argparse.Namespace) -> None:
    from segquant.runs import layers

    params = config.load(arguments.params)
    chosen: dict[str, Any] = {}
    if arguments.bits:
        chosen["bits"] = [int(b) if b.strip().isdigit() else b for b in arguments.bits.split(",")]
    if arguments.limit is not None:
        chosen["images"] = arguments.limit
    given = {**asdict(params.sensitivity), "bits": list(params.sensitivity.bits), **chosen}
    asked = config.build(config.Sensitivity, given, "sensitivity")
    found = layers(params, asked, label_map=arguments.label_map, **_scored(arguments))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    worst = sorted(found, key=lambda row: -row["mean_iou_loss"])[:10]
    print(f"{'module':60} bits  loss  SNR dB")
    for row in worst:
        print(f"{row['module']:60} {row['bits']:4} {row['mean_iou_loss']:5.2f} {row['snr_db'] or math.inf:7.1f}")
    print(f"The ten worst of {len(found)}, in points of mIoU; all: {arguments.output / 'sensitivity.csv'}")


def _fetch_data(arguments: argparse.Namespace) -> None:
    from segquant.data.fetch import fetch

    folder = fetch(arguments.name, arguments.output)
    print(json.dumps({"source": str(folder)}) if arguments.json else f"{folder}: what data.source and --data take")


def _export(arguments: argparse.Namespace) -> None:
    wanted = "model" if arguments.format == "onnx" else "artifact"
    if not getattr(arguments, wanted):
        raise ConfigError(f"--format {arguments.format} needs --{wanted}")
    others = {"onnx": ("artifact",), "transformers": ("model", "revision", "sha256", "opset", "classes")}
    for name in others[arguments.format]:
        if getattr(arguments, name) not in (None, False):
            raise ConfigError(f"--format {arguments.format} takes no --{name}")
    if arguments.format == "transformers":
        from segquant.deploy.transformers_folder import export_transformers

        size = export_transformers(arguments.artifact, arguments.output)
        if arguments.json:
            print(json.dumps({"bytes": size}))
            return
        print(
            f"{arguments.output}: {size / 1e6:.2f} MB of weights, for AutoModelForSemanticSegmentation.from_pretrained"
        )
        return
    from segquant.deploy.graph import OPSET
    from segquant.deploy.onnx_export import PRECISIONS, export_onnx
    from segquant.hub import locate

    if arguments.output.exists():
        raise ConfigError(f"{arguments.output} exists: give a new folder, or remove that one first")
    folder = locate(arguments.model, arguments.revision, arguments.sha256)
    told = export_onnx(
        folder, arguments.output, OPSET if arguments.opset is None else arguments.opset, arguments.classes
    )
    if arguments.json:
        print(json.dumps(told, indent=2))
        return
    for name in PRECISIONS:
        one = told[name]
        off = f", logits at most {one['difference']:.1e} from PyTorch's" if "difference" in one else ""
        print(
            f"{arguments.output / name}.onnx: {one['bytes'] / 1e6:.2f} MB{off}, {one['agreement']:.2%} of its classes"
        )


def _methods(arguments: argparse.Namespace) -> None:
    from segquant import models
    from segquant.deploy import describe as graphs
    from segquant.deploy import extras
    from segquant.quant import methods

    params = config.load(arguments.params)
    device = models.device(params.eval.device)
    listing: dict[str, Any] = {}
    for name, recipe in params.quant.methods.items():
        if isinstance(recipe, config.Graph):
            words, reason = graphs.describe(recipe), extras.unavailable(recipe)
        else:
            words, reason = methods.describe(recipe), methods.unavailable(recipe, device)
        listing[name] = {"description": words, "unavailable": reason}
    if arguments.json:
        print(json.dumps(listing, indent=2))
        return
    for name, entry_ in listing.items():
        print(
            f"{name:15} {entry_['description']}"
            + (f" [unavailable: {entry_['unavailable']}]" if entry_["unavailable"] else "")
        )


def _compare(arguments: argparse.Namespace) -> None:
    from segquant.evaluation.bootstrap import compare
    from segquant.evaluation.counts import locate_counts, read_counts
    from segquant.report import tables

    names = arguments.first, arguments.second
    found = compare(*(read_counts(locate_counts(arguments.metrics, name)) for name in names))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        tables.show_comparison(*names, found)


def _report(arguments: argparse.Namespace) -> None:
    from segquant.report import advice, tables

    results = tables.collect(arguments.metrics, config.load(arguments.params).quant.methods)
    if not results:
        raise ConfigError(f"{arguments.metrics} holds no results: run `dvc repro` first")
    advice.add_intervals(results, arguments.metrics / "predictions")
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    tables.show(results, read_json(arguments.metrics / "hardware.json"))
    for heading, method, words in advice.sentences(results):
        print(f"{heading}: {method}. {words}")
    page = arguments.metrics / "report" / "index.html"
    if page.is_file():
        print(f"Report: {page}")
