"""Draw an artifact's predictions over photographs, with a legend."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base import config
from segquant.base.text import say, say_json
from segquant.commands.shared import ARTIFACT, add_force, add_protocol


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", help="files, folders, or patterns such as 'photos/**/*.jpg'")
    parser.add_argument("--artifact", required=True, type=Path, help=ARTIFACT)
    add_protocol(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder for the overlays (default: predictions)"
    )
    add_force(parser)


def main(arguments: argparse.Namespace) -> None:
    from segquant.base.output import check
    from segquant.predictions import predict_pictures

    params = config.load(arguments.params)
    check(arguments.output, "predict", [arguments.artifact], arguments.force)
    results = predict_pictures(
        params, arguments.pictures, arguments.artifact, arguments.output, arguments.protocol, arguments.force
    )
    if arguments.json:
        say_json(results)
        return
    for result in results:
        if "skipped" in result:
            say(f"{result['picture']}: skipped")
            continue
        largest = list(result["classes"].items())[:4]
        say(f"{result['overlay']}: {', '.join(f'{name} {100 * share:.0f} %' for name, share in largest)}")
