"""Benchmark a model on labelled images, without DVC."""

from __future__ import annotations

import argparse
import json

from segquant.base import config
from segquant.commands.shared import add_built, add_limit, add_scored, at_least, print_advice, scored


def options(parser: argparse.ArgumentParser) -> None:
    add_scored(parser)
    add_built(parser)
    parser.add_argument("--methods", help="names under quant.methods, separated by commas (default: all)")
    add_limit(parser)


def main(arguments: argparse.Namespace) -> None:
    at_least(1, "--limit", arguments.limit)
    names = [name.strip() for name in arguments.methods.split(",")] if arguments.methods else None
    benchmark(arguments, config.load(arguments.params), names)


def benchmark(arguments: argparse.Namespace, params: config.Params, methods: list[str] | None = None) -> None:
    """Quantize, score and time `methods` (None: all of `params`), and print the tables."""
    from segquant.base.hardware import probe
    from segquant.report import terminal
    from segquant.report.results import from_json
    from segquant.runs import run

    results = run(
        params,
        **scored(arguments),
        label_maps=[None if path == "none" else path for path in arguments.label_map or ["none"]],
        methods=methods,
        limit=arguments.limit,
        train_data=arguments.train_data,
        train_split=arguments.train_split,
    )
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    if len(arguments.data) > 1:
        terminal.show_several({name: from_json(methods) for name, methods in results.items()}, probe())
    else:
        terminal.show(from_json(results), probe())
        print_advice(from_json(results))
    print(f"Results: {arguments.output / 'results.json'}")
