"""Make an int8 ONNX file by calibration, or by training as well, and score it."""

from __future__ import annotations

import argparse
from dataclasses import replace

from segquant.base import config
from segquant.base.errors import ConfigError, UnavailableError
from segquant.base.text import say
from segquant.commands.run import benchmark
from segquant.commands.shared import add_built, add_scored, at_least


def options(parser: argparse.ArgumentParser) -> None:
    add_scored(parser)
    add_built(parser)
    parser.add_argument(
        "--epochs", type=int, default=0, help="epochs of quantization-aware training without labels (default: 0)"
    )
    parser.add_argument("--num-calibration-samples", type=int, default=100, help="calibration images (default: 100)")
    parser.add_argument(
        "--num-samples-per-dataset", dest="limit", type=int, help="score only the first N images of each data set"
    )


def main(arguments: argparse.Namespace) -> None:
    at_least(0, "--epochs", arguments.epochs)
    at_least(1, "--num-calibration-samples", arguments.num_calibration_samples)
    at_least(1, "--num-samples-per-dataset", arguments.limit)
    params = config.load(arguments.params)
    methods = _methods(params, arguments)
    benchmark(arguments, replace(params, quant=config.Quant("int8_static", methods)), command="pt2e")
    if not arguments.json:
        say(f"ONNX: {arguments.output / 'artifacts' / list(methods)[-1] / 'model.onnx'}")


def _methods(params: config.Params, arguments: argparse.Namespace) -> dict[str, config.Method]:
    """The int8 methods after the float ones that they are compared with."""
    import torch

    from segquant.methods import kind

    calibration = config.Calibration(arguments.num_calibration_samples)
    static = config.Graph(engine="onnxruntime", weights="int8", algorithm="pt2e", calibration=calibration)
    if reason := kind(static).unavailable(static, torch.device("cpu")):
        raise UnavailableError(reason)
    if reason := kind(static).refused(arguments.protocol or params.protocol, None):
        raise ConfigError(reason)
    methods: dict[str, config.Method] = {
        "float32": config.Recipe("float32"),
        "onnx_float32": config.Graph(engine="onnxruntime", weights="float32"),
        "int8_static": static,
    }
    if arguments.epochs:
        configured = params.quant.methods.get("int8_static_qat", static)
        train = configured.train if isinstance(configured.train, config.Finetune) else config.Finetune(epochs=1)
        methods["int8_static_qat"] = replace(static, train=replace(train, epochs=arguments.epochs))
    return methods
