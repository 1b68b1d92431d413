"""Quantize each layer alone and score the model."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from segquant.base import config
from segquant.base.text import say, say_json
from segquant.commands.shared import DATA, LABEL_MAP, add_scored, scored


def options(parser: argparse.ArgumentParser) -> None:
    add_scored(parser)
    parser.add_argument("--data", required=True, help=DATA)
    parser.add_argument("--label-map", help=LABEL_MAP)
    parser.add_argument("--bits", help="some of 2, 3, 4 and 8, separated by commas (default: those of params.yaml)")
    parser.add_argument(
        "--artifact", type=Path, help="one that weights auto made of this model: the figure shows what each layer got"
    )
    parser.add_argument("--limit", type=int, help="score only the first N images (default: as in params.yaml)")


def main(arguments: argparse.Namespace) -> None:
    params = config.load(arguments.params)
    options = {"label_map": arguments.label_map, "artifact": arguments.artifact, **scored(arguments)}
    rows = _layers(params, _settings(params, arguments), **options)
    if arguments.json:
        say_json(rows)
        return
    say(f"{'module':60} bits  loss  SNR dB")
    for row in sorted(rows, key=lambda row: -row["mean_iou_loss"])[:10]:
        noise = math.inf if row["snr_db"] is None else row["snr_db"]  # no logit changed
        say(f"{row['module']:60} {row['bits']:4} {row['mean_iou_loss']:5.2f} {noise:7.1f}")
    say(f"The ten worst of {len(rows)}, in points of mIoU; all: {arguments.output / 'sensitivity.csv'}")


def _layers(
    params: config.Params,
    settings: config.Sensitivity,
    *,
    model: str,
    revision: str | None,
    sha256: str | None,
    data: str,
    split: str,
    output: Path,
    force: bool,
    label_map: str | None,
    artifact: Path | None,
    protocol: str | None,
) -> list[dict[str, Any]]:
    """Measure, and write sensitivity.csv and sensitivity.svg to `output`."""
    from segquant.base import output as output_folder
    from segquant.base.files import write_text
    from segquant.base.hub import locate
    from segquant.data.rows import rows
    from segquant.data.sources import open_source
    from segquant.evaluation.sensitivity import layers, to_csv
    from segquant.report.figure import standalone
    from segquant.report.layers import chart

    output_folder.check(output, "sensitivity", [model, data, *filter(None, [label_map, artifact])], force)
    params = replace(params, protocol=config.check_protocol(protocol or params.protocol))
    folder = locate(model, revision, sha256)
    allocations = _allocated(artifact, folder) if artifact else None
    skip = params.eval.on_error == "skip"
    source = open_source(replace(params.data, source=data), split, settings.images, params.eval.on_error)
    scored_rows = list(rows(source, [] if skip else None))
    with output_folder.claimed(output, "sensitivity", force) as claim:
        claim.check(output / "sensitivity.csv", output / "sensitivity.svg")
        losses = layers(params, settings, folder, scored_rows, source.classes, label_map)
        write_text(output / "sensitivity.csv", to_csv(losses))
        write_text(output / "sensitivity.svg", standalone(chart(losses, allocations)))
    return losses


def _allocated(artifact: Path, model: Path) -> dict[str, Any]:
    """What weights `auto` gave the layers of a model, as `report.bits.read` has it.

    Raises ModelError for an artifact of another method, or of a model with other layers; it cannot tell a model of the
    same layers that was trained differently.
    """
    from segquant import models
    from segquant.base.errors import ModelError
    from segquant.quant.artifacts import check_present, describe_artifact

    info = describe_artifact(artifact)
    check_present(artifact, info)
    if "allocation" not in info:
        raise ModelError(f"{artifact} is not of weights auto: give an artifact that has an allocation")
    exact, layers = models.load(model), info["allocation"]["layers"]
    count = sum(parameter.numel() for parameter in exact.parameters())
    if info["parameters"] != count:
        words = f"{artifact} has {info['parameters']:,} parameters, and {model} {count:,}"
        raise ModelError(f"{words}: give one made of it")
    if other := sorted(set(layers) - {name for name, _ in exact.named_modules()}):
        raise ModelError(f"{artifact} has the layer {other[0]}, and {model} has not: give one made of it")
    return {artifact.name: layers}


def _settings(params: config.Params, arguments: argparse.Namespace) -> config.Sensitivity:
    """The section `sensitivity` of params.yaml, with what the options change."""
    settings: dict[str, Any] = {**asdict(params.sensitivity), "bits": list(params.sensitivity.bits)}
    if arguments.bits:
        settings["bits"] = [
            int(bits) if re.fullmatch(r"\s*[0-9]{1,9}\s*", bits) else bits for bits in arguments.bits.split(",")
        ]
    if arguments.limit is not None:
        settings["images"] = arguments.limit
    return config.build(config.Sensitivity, settings, "sensitivity")
