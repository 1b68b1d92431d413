"""Benchmark a model on labelled images, without DVC."""

from __future__ import annotations

import argparse

from segquant.base import config
from segquant.base.text import say, say_json
from segquant.commands.shared import add_built, add_limit, add_scored, at_least, print_advice, scored


def options(parser: argparse.ArgumentParser) -> None:
    add_scored(parser)
    add_built(parser)
    parser.add_argument("--methods", help="names of methods, separated by commas (default: all)")
    add_limit(parser)


def main(arguments: argparse.Namespace) -> None:
    at_least(1, "--limit", arguments.limit)
    names = [name.strip() for name in arguments.methods.split(",")] if arguments.methods else None
    benchmark(arguments, config.load(arguments.params), names)


def benchmark(
    arguments: argparse.Namespace, params: config.Params, methods: list[str] | None = None, command: str = "run"
) -> None:
    """Quantize, score and time `methods` (None: all of `params`) for `command`, and print the tables.

    Raises MethodsFailed at the end where one failed.
    """
    from segquant.base.hardware import probe
    from segquant.report import terminal
    from segquant.report.results import fail_with, failures, from_json
    from segquant.runs import run

    results = run(
        params,
        **scored(arguments),
        command=command,
        label_maps=[None if path == "none" else path for path in arguments.label_map or ["none"]],
        methods=methods,
        limit=arguments.limit,
        train_data=arguments.train_data,
        train_split=arguments.train_split,
    )
    sets = results if len(arguments.data) > 1 else {"": results}
    shown = {name: from_json(by_method) for name, by_method in sets.items()}
    if arguments.json:
        say_json(results)
    else:
        if len(shown) > 1:
            terminal.show_several(shown, probe())
        else:
            terminal.show(shown[""], probe())
            print_advice(shown[""])
        say(f"Results: {arguments.output / 'results.json'}")
    failed = dict.fromkeys(method for by_method in shown.values() for method in failures(by_method))
    fail_with(failed, f"{arguments.output / 'run.log'} has the details")
