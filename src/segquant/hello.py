"""What `make repro` prints first: what it does, how long that takes, and the results that are here already.

It runs before anything is installed, by whatever Python there is.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

SECONDS, RESULTS = Path("stages/seconds.json"), Path("metrics/results.csv")
COLUMNS = {  # of RESULTS, and their headings here
    "method": "method",
    "mean_iou": "mIoU %",
    "loss_points": "loss",
    "agreement": "agree %",
    "size_mb": "MB",
    "speedup_eager": "x eager",
}


def main() -> None:
    seconds = json.loads(SECONDS.read_text())
    print(
        f"segquant quantizes, scores and times every method, in {len(seconds)} stages. The first run takes about "
        f"{round(sum(seconds.values()) / 60)} minutes\non two cores with AVX-512; later runs skip what has not changed."
    )
    if RESULTS.is_file():
        with RESULTS.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("mean_iou")]
        print(f"Until it is done, the results of the last run ({RESULTS}):\n\n{_table(rows)}\n", flush=True)


def _table(rows: list[dict[str, str]]) -> str:
    cells = [list(COLUMNS.values()), *([_harmless(row.get(key) or "") for key in COLUMNS] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(widths)))]) for row in cells
    )


def _harmless(text: str) -> str:
    """The text without effect on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


if __name__ == "__main__":
    main()
