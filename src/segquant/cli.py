"""The segquant command: a parser made from the modules in `segquant.commands`, and what runs it."""

from __future__ import annotations

import argparse
import re
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

import segquant
from segquant import commands
from segquant.base.entry import run
from segquant.base.errors import ConfigError
from segquant.base.text import on_terminal
from segquant.commands.shared import add_common

_EPILOG = """\
examples:
  segquant run --model DIR --data DIR --split val --methods float32,int8,int4 --output out/
  segquant predict photos/*.jpg --artifact models/quantized/int4 --output overlays/
  segquant compare int4 int2

exit codes:
  0    done
  1    a fault of the program; one line on stderr, and --verbose shows where
  2    an input is wrong or missing; one line on stderr says what, where and what to do
  3    review: a method failed, or lost more accuracy than review.max_drop
  4    run, pt2e, report: a method failed, and its results say why; the others are done
  130  interrupted
  141  the reader of the output has closed it, as `head` does

DVC runs the pipeline: `dvc repro` builds and measures what changed (README.md)."""


def cli() -> None:
    """Entry point: exits with one of the codes above."""
    run(_main)


def _main() -> None:
    for before, word in pairwise(sys.argv):
        if not word or re.fullmatch("--[a-z0-9-]+=", word):  # a variable of the shell that is not set
            name = word.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise ConfigError(f"{name} is empty: give a value, or leave it out")
    arguments = parser().parse_args()
    arguments.main(arguments)


class _Parser(argparse.ArgumentParser):
    """Shows what it refuses, such as a file's name, by `on_terminal`. Options are written in full: base/entry.py looks
    for --verbose."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        super().error(on_terminal(message))


def parser() -> argparse.ArgumentParser:
    """Every command, with `main` set to the function that carries it out."""
    root = _Parser(prog="segquant", description=segquant.__doc__, epilog=_EPILOG, formatter_class=_formatter)
    root.add_argument("--version", action="version", version=f"segquant {segquant.__version__}")
    _add_commands(root, commands)
    return root


def _add_commands(parent: argparse.ArgumentParser, package: ModuleType) -> None:
    subparsers = parent.add_subparsers(required=True, metavar="COMMAND [OPTIONS]", title="commands")
    for module in package.COMMANDS:
        text = module.__doc__.splitlines()[0]
        command = subparsers.add_parser(
            module.__name__.rpartition(".")[2].replace("_", "-"),
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            formatter_class=_formatter,
        )
        if hasattr(module, "COMMANDS"):
            _add_commands(command, module)
        else:
            module.options(command)
            add_common(command)
            command.set_defaults(main=module.main)


def _formatter(prog: str) -> RawDescriptionRichHelpFormatter:
    return RawDescriptionRichHelpFormatter(prog, max_help_position=24)
