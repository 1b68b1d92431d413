"""Write what dvc repro changed since a Git revision, as Markdown."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from segquant.base import config
from segquant.base.errors import ConfigError
from segquant.base.files import read_file, write_text
from segquant.base.text import say, say_json
from segquant.commands.shared import add_metrics

_LONGEST = 1 << 20  # bytes of a review


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default="main", help="Git revision to compare with (default: main)")
    add_metrics(parser)
    parser.add_argument("--output", type=Path, help="Markdown file (default: print it)")


def main(arguments: argparse.Namespace) -> None:
    from segquant.report.review import review

    params = config.load(arguments.params)
    if arguments.output:
        _check_output(arguments.output)
    text, good = review(arguments.base, arguments.metrics, list(params.quant.recipes), params.review.max_drop)
    if arguments.output:
        write_text(arguments.output, text)
    if arguments.json:
        say_json({"good": good, "max_drop": params.review.max_drop, "markdown": text}, indent=None)
    elif arguments.output:
        say(f"{arguments.output}: {text.splitlines()[2].removeprefix('## ')}")
    else:
        print(text, end="")
    if not good:
        sys.exit(3)


def _check_output(path: Path) -> None:
    """Raise ConfigError for a folder, and for a file that is no earlier review."""
    from segquant.report.review import MARKER

    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder: give a file")
    if os.path.lexists(path) and read_file(path, _LONGEST)[: len(MARKER)] != MARKER.encode():
        raise ConfigError(f"--output {path} is no review that could be replaced: give a new file")
