"""Print the results of the last dvc repro, and which method to ship."""

from __future__ import annotations

import argparse

from segquant.base import config
from segquant.base.errors import ConfigError
from segquant.base.text import say, say_json
from segquant.commands.shared import add_metrics, print_advice


def options(parser: argparse.ArgumentParser) -> None:
    add_metrics(parser)


def main(arguments: argparse.Namespace) -> None:
    from segquant.report import terminal
    from segquant.report.checked import read_hardware
    from segquant.report.results import RETRY, collect, fail_with, failures, to_json, with_intervals

    results = collect(arguments.metrics, config.load(arguments.params).quant.recipes)
    if not results:
        raise ConfigError(f"{arguments.metrics} holds no results: run `dvc repro` first")
    results = with_intervals(results, arguments.metrics)
    if arguments.json:
        say_json(to_json(results))
    else:
        terminal.show(results, read_hardware(arguments.metrics))
        print_advice(results)
        page = arguments.metrics / "report" / "index.html"
        if page.is_file():
            say(f"Report: {page}")
    fail_with(failures(results), RETRY)
