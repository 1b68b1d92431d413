"""What a bar looks like on a terminal and in a pipe."""

import os
import pty
import re
import subprocess
import sys

WORK = """
import logging
from segquant.base.entry import setup_logging
from segquant.base.progress import progress
setup_logging()
with progress(total=4, desc="train", unit="step") as bar:
    for step in range(4):
        if step == 2:
            logging.getLogger("segquant").warning("something to know")
            with progress(total=2, desc="evaluate", unit="image") as inner:
                inner.update(2)
        bar.set_postfix({"loss": 0.5})
        bar.update()
with progress(total=3_000_000, desc="fetch", unit="B", scale=True, quiet=True) as bar:
    bar.update(3_000_000)
"""
LONG = """
from segquant.base import progress
from time import sleep
progress.SECONDS = 0.5
with progress.progress(total=3_000_000, initial=1_000_000, desc="fetch", unit="B", scale=True) as bar:
    for pause in (0, 0.6, 0, 0.6, 0):
        sleep(pause)
        bar.update(400_000)
with progress.progress(total=8, desc="nothing done", unit="step") as bar:
    pass
"""


def piped(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    return done.stderr.splitlines()


def test_a_pipe_gets_a_whole_line_at_the_end_of_each_bar_and_none_of_a_quiet_one():
    lines = piped(WORK)
    assert lines[0] == "WARNING segquant: something to know"
    assert re.fullmatch(r"evaluate: 100% 2/2, [\d.]+ image/s, \d+ s", lines[1])
    assert re.fullmatch(r"train: 100% 4/4, [\d.]+ step/s, loss=0.5, \d+ s", lines[2])
    assert len(lines) == 3


def test_a_pipe_gets_a_line_each_time_the_seconds_have_passed():
    counts = [re.match(r"fetch: (\d+% \S+ .B/3.0 MB), [\d.]+ .B/s, 1?\d s$", line)[1] for line in piped(LONG)]
    assert counts == ["60% 1.8 MB/3.0 MB", "87% 2.6 MB/3.0 MB", "100% 3.0 MB/3.0 MB"]


def test_on_a_terminal_bars_move_one_inside_another_and_a_log_stays_above():
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", WORK], stderr=child, env=environment)
    os.close(child)
    shown = b""
    try:
        while part := os.read(parent, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "\x1b[" in shown.decode() and "something to know" in text and "fetch" not in text
    last = text.strip().splitlines()[-1]
    assert re.search(r"train ━+ 100% 4/4, .* step/s, loss=0.5", text) and "evaluate" in text, last
