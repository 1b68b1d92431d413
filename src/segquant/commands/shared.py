"""Options and helpers that several commands use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant.base.errors import ConfigError
from segquant.base.text import say

if TYPE_CHECKING:
    from segquant.report.results import Result

DATA = "'scenes', a labelled folder, a zip archive, a folder of Parquet files, or a hub id"
LABEL_MAP = "YAML file that maps the model's class ids to the data set's"
MODEL = "folder, hub id (owner/name), or https URL of safetensors"
ARTIFACT = "folder of a quantized model, such as models/quantized/int8"
NEW_FOLDER = "new folder for the files"
_SCORED = ("model", "revision", "sha256", "data", "split", "protocol", "output", "force")


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every command takes."""
    shared = parser.add_argument_group("shared options")
    shared.add_argument(
        "--params", type=Path, help="configuration file (default: ./params.yaml, else the repository's)"
    )
    shared.add_argument("--verbose", action="store_true", help="log more to stderr")
    shared.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which float model to take."""
    parser.add_argument("--model", required=True, help=MODEL)
    add_pins(parser)


def add_pins(parser: argparse.ArgumentParser) -> None:
    """Which version of a model from elsewhere."""
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument("--sha256", help="checksum of the files behind a URL, as docs/models.md computes it")


def add_scored(parser: argparse.ArgumentParser) -> None:
    """Which float model to score, how, and where to write the results."""
    add_model(parser)
    add_split(parser)
    add_protocol(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for the results, new or of an earlier run")
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Whether a folder that holds other things is written to."""
    parser.add_argument("--force", action="store_true", help="write to --output whatever else it holds")


def add_built(parser: argparse.ArgumentParser) -> None:
    """Which data sets to score on, and which images to calibrate and train on."""
    parser.add_argument(
        "--data", required=True, action="append", help=f"{DATA}; repeat it to score several data sets separately"
    )
    parser.add_argument(
        "--label-map",
        action="append",
        help=f"{LABEL_MAP}; with several --data, repeat it in their order, 'none' for a data set without a map",
    )
    parser.add_argument("--train-data", help="images for calibration and training (default: the first --data)")
    parser.add_argument("--train-split", default="train", help="split of --train-data (default: train)")


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", required=True, help="split to score, such as val")


def add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", help="aligned-512-v1 or fixed-HxW-v1 (default: that of params.yaml)")


def add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, help="score only the first N images")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", type=Path, default=Path("metrics"), help="folder of the results (default: metrics)"
    )


def scored(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that name a model, labelled data and the output folder."""
    return {name: getattr(arguments, name) for name in _SCORED}


def at_least(least: int, option: str, value: int | None) -> None:
    """Raise ConfigError for a value below `least`."""
    if value is not None and value < least:
        raise ConfigError(f"{option} must be at least {least}, not {value}")


def print_advice(results: dict[str, Result]) -> None:
    """Print which method to ship and which to avoid."""
    from segquant.report import advice

    for heading, method, text in advice.sentences(results):
        say(f"{heading}: {method}. {text}")
