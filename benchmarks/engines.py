"""Every engine and precision on one model and one data set: accuracy, size and speed, each against its own float32.

python benchmarks/engines.py --model DIR --data DIR --split val --protocol fixed-384x512-v1 --output out/ \\
    [--label-map FILE] [--input-size 384 512] [--compile] [--methods NAME,NAME]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from segquant.base import config
from segquant.base.entry import run as entry
from segquant.base.hardware import probe
from segquant.base.validate import build
from segquant.report import terminal
from segquant.runs import run

FEW, MANY = {"images": 32}, {"images": 100}
# What OpenVINO cannot bear in int8 are depthwise convolutions; the others cost less, and gain little.
KEPT = ["GroupConvolution", "Add", "Multiply", "Interpolate", "MVN"]
ORT, OV = {"engine": "onnxruntime", "weights": "int8"}, {"engine": "openvino", "weights": "int8", "algorithm": "nncf"}
METHODS = {
    "float32": {"weights": "float32"},
    "bfloat16": {"weights": "bfloat16"},
    "int8_dynamic": {"weights": "int8", "activations": "int8"},
    "onnx_float32": {"engine": "onnxruntime", "weights": "float32"},
    "onnx_float16": {"engine": "onnxruntime", "weights": "float16"},
    "onnx_int8": {**ORT, "algorithm": "qdq", "calibration": FEW, "max_drop": 0.1},
    "int8_static": {**ORT, "algorithm": "pt2e", "calibration": MANY},
    "int8_static_qat": {**ORT, "algorithm": "pt2e", "calibration": MANY, "train": {"epochs": 4}},
    "openvino_float32": {"engine": "openvino", "weights": "float32"},
    "openvino_bfloat16": {"engine": "openvino", "weights": "float32", "compute": "bfloat16"},
    "openvino_int8_default": {**OV, "calibration": FEW},
    "openvino_int8": {**OV, "calibration": FEW, "compute": "bfloat16", "ignored_types": KEPT},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "split", "protocol", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--label-map")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--input-size", type=int, nargs=2, default=[512, 512], help="of what is timed: height, width")
    parser.add_argument("--compile", action="store_true", help="time PyTorch's methods compiled too (minutes each)")
    parser.add_argument("--methods", help=f"comma list of {', '.join(METHODS)} (default: all)")
    a = parser.parse_args()
    params = config.load()
    engines = ("eager", "compile") if a.compile else ("eager",)
    params = replace(
        params,
        quant=build(config.Quant, {"method": "float32", "methods": METHODS}, "METHODS"),
        speed=replace(
            params.speed, input_size=tuple(a.input_size), batch_sizes=(1, 4), engines=engines, runs=30, seconds=20
        ),
    )
    results = run(
        params,
        model=a.model,
        data=[a.data],
        split=a.split,
        output=Path(a.output),
        label_maps=[a.label_map],
        methods=a.methods.split(",") if a.methods else None,
        protocol=a.protocol,
        train_split=a.train_split,
    )
    terminal.show(results, probe())


if __name__ == "__main__":
    entry(main)
