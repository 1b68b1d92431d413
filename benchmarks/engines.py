"""Compare every engine and precision on a model and a data set: accuracy, size, and speed relative to float32.

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
from segquant.report.results import from_json
from segquant.runs import run

FEW, MANY = {"images": 32}, {"images": 100}
# Depthwise convolutions in int8 destroy OpenVINO's accuracy. The other types cost less, but int8 gains little there.
FLOAT_TYPES = ["GroupConvolution", "Add", "Multiply", "Interpolate", "MVN"]
ORT_INT8 = {"engine": "onnxruntime", "weights": "int8"}
GPTQ = {"group_size": 32, "algorithm": "gptq", "calibration": FEW}
TRAIN = {"steps": 1500, "batch_size": 2}
METHODS = {
    "float32": {"weights": "float32"},
    "bfloat16": {"weights": "bfloat16"},
    "int8_dynamic": {"weights": "int8", "activations": "int8"},
    "onnx_float32": {"engine": "onnxruntime", "weights": "float32"},
    "onnx_float16": {"engine": "onnxruntime", "weights": "float16"},
    "onnx_int8": {**ORT_INT8, "algorithm": "qdq", "calibration": FEW, "max_drop": 0.1},
    "int8_static": {**ORT_INT8, "algorithm": "pt2e", "calibration": MANY},
    "int8_static_qat": {**ORT_INT8, "algorithm": "pt2e", "calibration": MANY, "train": {"epochs": 4}},
    "openvino_float32": {"engine": "openvino", "weights": "float32"},
    "openvino_bfloat16": {"engine": "openvino", "weights": "float32", "compute": "bfloat16"},
    "openvino_int8": {
        "engine": "openvino",
        "weights": "int8",
        "algorithm": "nncf",
        "calibration": FEW,
        "compute": "bfloat16",
        "ignored_types": FLOAT_TYPES,
    },
    "int4_qat": {"weights": "int4", **GPTQ, "train": TRAIN},
    "int2_qat": {
        "weights": "int2",
        **GPTQ,
        "small_layers": {"weights": 20000, "group_size": 8, "bits": 4},
        "train": TRAIN,
    },
    "auto": {"weights": "auto", "megabytes": 1.28, "calibration": FEW},
    "auto_qat": {"weights": "auto", "megabytes": 1.15, "calibration": FEW, "train": TRAIN},
}
PACKED = {
    "int2_onnx": {"from": "int2_qat", "engine": "onnxruntime"},
    "int2_openvino": {"from": "int2_qat", "engine": "openvino"},
    "int2_openvino_bfloat16": {"from": "int2_qat", "engine": "openvino", "compute": "bfloat16"},
    "int4_static": {"from": "int4_qat", "engine": "onnxruntime", "activations": "int8", "train": {"epochs": 4}},
    "auto_static": {"from": "auto_qat", "engine": "onnxruntime", "activations": "int8", "train": {"epochs": 4}},
    "int2_static": {"from": "int2_qat", "engine": "onnxruntime", "activations": "int8", "train": {"epochs": 4}},
}


def scored_options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that say what is quantized, on what it is scored, and where the results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "split", "protocol", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--label-map")
    parser.add_argument("--train-split", default="train")
    return parser


def main() -> None:
    parser = scored_options(__doc__)
    parser.add_argument("--input-size", type=int, nargs=2, default=[512, 512], help="height and width to time")
    parser.add_argument("--compile", action="store_true", help="also time PyTorch's methods compiled (minutes each)")
    parser.add_argument("--methods", help=f"comma list of {', '.join(METHODS | PACKED)} (default: all)")
    arguments = parser.parse_args()
    params = config.load()
    quant = build(config.Quant, {"method": "float32", "methods": METHODS, "packed": PACKED}, "METHODS")
    speed = replace(
        params.speed,
        input_size=tuple(arguments.input_size),
        batch_sizes=(1, 4),
        engines=("eager", "compile") if arguments.compile else ("eager",),
        runs=30,
        seconds=20,
    )
    results = run(
        replace(params, quant=quant, speed=speed),
        model=arguments.model,
        data=[arguments.data],
        split=arguments.split,
        output=Path(arguments.output),
        label_maps=[arguments.label_map],
        methods=arguments.methods.split(",") if arguments.methods else None,
        protocol=arguments.protocol,
        train_split=arguments.train_split,
    )
    terminal.show(from_json(results), probe())


if __name__ == "__main__":
    entry(main)
