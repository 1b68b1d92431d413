"""The line with which a stage starts: which of how many it is, and how long it and the rest will take.

The stages and their seconds are those of a whole run, which `benchmarks/pipeline.py --write` noted. How fast this
machine is shows in the stages that have run. Stages that DVC will skip count as if they ran.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SECONDS = Path("stages/seconds.json")  # {stage: seconds}, in the order in which DVC runs them
ASSUMED = 60.0  # seconds of work that count as done at the noted pace: one slow stage at first says little
FASTEST = 0.5  # a pace below it comes from a stage that went on where it was killed


def announce(notes: Path) -> None:
    """Print the line on stderr, for a stage that SECONDS has. `notes` is a file in which the stages of a run note when
    each started."""
    name = os.environ.get("DVC_STAGE")
    if int(os.environ.get("RANK", 0)):  # of several processes the first one reports
        return
    try:
        seconds = json.loads(SECONDS.read_text())
        if name not in seconds:
            return
        earlier = dict(json.loads(line) for line in notes.read_text().splitlines()) if notes.is_file() else {}
        now = time.time()
        with notes.open("a") as file:
            file.write(json.dumps([name, now]) + "\n")
        print(words(seconds, earlier, name, now), file=sys.stderr, flush=True)
    except (OSError, ValueError):  # no stage fails for want of a line
        return


def words(seconds: Mapping[str, float], earlier: Mapping[str, float], name: str, now: float) -> str:
    """The line of the stage `name`, which starts at the time `now`; `earlier` are the stages that started before it,
    and when. Times are in seconds."""
    names = list(seconds)
    done = sum(seconds[stage] for stage in earlier)
    taken = now - min(earlier.values(), default=now)
    pace = max(FASTEST, (ASSUMED + taken) / (ASSUMED + done))
    left = pace * sum(seconds[stage] for stage in names[names.index(name) :])
    minutes = f"about {round(left / 60)} minutes left" if left >= 90 else "less than two minutes left"
    return f"stage {names.index(name) + 1} of {len(names)}, {minutes}"
