"""The last stage: end with exit code 4 where a method failed, after the report on all methods is written."""

from segquant.base import config
from segquant.base.entry import run
from segquant.report import terminal
from segquant.report.results import PREDICTED, RETRY, collect, fail_with, failures, with_intervals
from stages import arguments


def main() -> None:
    metrics = arguments(__doc__, "metrics").metrics
    results = collect(metrics, config.load().quant.recipes, *PREDICTED)
    if failed := failures(results):
        terminal.show(with_intervals(results, metrics))
        fail_with(failed, RETRY)


if __name__ == "__main__":
    run(main)
