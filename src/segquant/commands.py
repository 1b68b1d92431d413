"""What each segquant command does with its arguments: call the library, print a table or JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, replace
from typing import Any

from segquant.base import config
from segquant.base.errors import ConfigError, UnavailableError
from segquant.base.files import read_json, write_text


def _scored(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that name a model, labelled data and where results go."""
    names = ("model", "revision", "sha256", "data", "split", "protocol", "output")
    return {name: getattr(arguments, name) for name in names}


def _at_least(least: int, option: str, value: int | None) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{option} must be at least {least}, not {value}")


def run(arguments: argparse.Namespace) -> None:
    _at_least(1, "--limit", arguments.limit)
    params = config.load(arguments.params)
    _benchmark(arguments, params, [m.strip() for m in arguments.methods.split(",")] if arguments.methods else None)


def pt2e(arguments: argparse.Namespace) -> None:
    from segquant.engines.extras import refused_protocol, unavailable

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
    from segquant.base.hardware import probe
    from segquant.report import terminal
    from segquant.report.results import from_json
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
            terminal.show_several({name: from_json(content) for name, content in results.items()}, probe())
        else:
            terminal.show(from_json(results), probe())
            tell(from_json(results))
        print(f"Results: {arguments.output / 'results.json'}")


def evaluate(arguments: argparse.Namespace) -> None:
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


def sensitivity(arguments: argparse.Namespace) -> None:
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


def fetch_data(arguments: argparse.Namespace) -> None:
    from segquant.data.fetch import fetch

    folder = fetch(arguments.name, arguments.output)
    print(json.dumps({"source": str(folder)}) if arguments.json else f"{folder}: what data.source and --data take")


def export(arguments: argparse.Namespace) -> None:
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
    from segquant.base.hub import locate
    from segquant.deploy.graph import OPSET
    from segquant.deploy.onnx_export import PRECISIONS, export_onnx

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


def methods(arguments: argparse.Namespace) -> None:
    from segquant import models
    from segquant.deploy import describe as graphs
    from segquant.engines import extras
    from segquant.quant import recipes as methods

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


def predict(arguments: argparse.Namespace) -> None:
    from segquant.predictions import predict_pictures

    params = config.load(arguments.params)
    found = predict_pictures(params, arguments.pictures, arguments.artifact, arguments.output, arguments.protocol)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for one in found:
        most = ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(one["classes"].items())[:4])
        print(f"{one['overlay']}: {most}")


def compare(arguments: argparse.Namespace) -> None:
    from segquant.evaluation.bootstrap import compare
    from segquant.evaluation.counts import locate_counts, read_counts
    from segquant.report import terminal

    names = arguments.first, arguments.second
    found = compare(*(read_counts(locate_counts(arguments.metrics, name)) for name in names))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        terminal.show_comparison(*names, found)


def review(arguments: argparse.Namespace) -> None:
    from segquant.report.review import review

    params = config.load(arguments.params)
    text, good = review(arguments.base, arguments.metrics, list(params.quant.methods), params.review.max_drop)
    if arguments.output:
        write_text(arguments.output, text)
    if arguments.json:
        print(json.dumps({"good": good, "max_drop": params.review.max_drop, "markdown": text}))
    elif not arguments.output:
        print(text, end="")
    else:
        print(f"{arguments.output}: {text.splitlines()[2].removeprefix('## ')}")
    if not good:
        sys.exit(3)


def tell(results: dict[str, Any]) -> None:
    """Print what to ship and what to leave."""
    from segquant.report import advice

    for heading, method, words in advice.sentences(results):
        print(f"{heading}: {method}. {words}")


def report(arguments: argparse.Namespace) -> None:
    from segquant.report import terminal
    from segquant.report.results import collect, to_json, with_intervals

    results = collect(arguments.metrics, config.load(arguments.params).quant.methods)
    if not results:
        raise ConfigError(f"{arguments.metrics} holds no results: run `dvc repro` first")
    results = with_intervals(results, arguments.metrics)
    if arguments.json:
        print(json.dumps(to_json(results), indent=2))
        return
    terminal.show(results, read_json(arguments.metrics / "hardware.json"))
    tell(results)
    page = arguments.metrics / "report" / "index.html"
    if page.is_file():
        print(f"Report: {page}")
