"""Write results.csv and the HTML page, and log both to W&B; `segquant report` prints the table."""

from pathlib import Path

from segquant import lineage, tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import read_json, write_text
from segquant.data.shards import read_manifest, read_rows
from segquant.report import bits, classes, page, pictures, tables
from segquant.report.checked import read_hardware
from segquant.report.results import PREDICTED, collect, measured, with_intervals
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "metrics", "shards", "baseline", "artifacts", "csv", "classes", "page")
    params, predictions = config.load(), Path(a.metrics) / "predictions"
    tracking.login(params.wandb)
    results = with_intervals(collect(a.metrics, params.quant.recipes, *PREDICTED), a.metrics)
    hardware, layers = read_hardware(a.metrics), read_json(Path(a.metrics) / "layers.json")
    manifest, rows = read_manifest(a.shards), list(read_rows(a.shards, "validation", params.eval.pictures))
    names, done = manifest["classes"], measured(results)
    write_text(a.csv, tables.to_csv(results))
    write_text(a.classes, classes.to_csv(classes.read_classes(predictions, done), list(done)))
    figures = layers, bits.read(a.artifacts, done)
    page.write_page(a.page, results, rows, predictions, names, hardware, params.quant.recipes, *figures)

    def report() -> tracking.Report:
        missing = {method: result.missing for method, result in results.items() if result.missing}
        origin = lineage.lineage(params, a.baseline, manifest) | {"missing": missing}
        artifacts = lineage.artifacts(a.artifacts, {method: result.accuracy for method, result in done.items()})
        overlays = pictures.overlays(rows, done, predictions)
        return tracking.Report(origin, tables.values(results), overlays, names, artifacts)

    tracking.log_report(params.wandb, report)


if __name__ == "__main__":
    run(main)
