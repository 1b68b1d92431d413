"""Download a public data set, verify its checksum and unpack it."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base.text import say, say_json


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="ade20k: Scene Parse 150, 0.97 GB")
    parser.add_argument("--output", type=Path, default=Path("data/raw"), help="folder for it (default: data/raw)")


def main(arguments: argparse.Namespace) -> None:
    from segquant.data.fetch import fetch

    folder, verified = fetch(arguments.name, arguments.output)
    if arguments.json:
        say_json({"source": str(folder), "verified": verified}, indent=None)
    else:
        say(f"{folder}{'' if verified else ', which was not checked'}: pass it to data.source or --data")
