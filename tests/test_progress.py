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
    bar.update(1)
"""


def test_in_a_pipe_it_is_whole_lines():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[0] == "WARNING segquant: something to know"
    assert re.fullmatch(r"evaluate: 100% 2/2 \[\d+ s, [\d.]+ image/s\]", lines[1])
    assert re.fullmatch(r"train: 100% 4/4 \[\d+ s, [\d.]+ step/s, loss=0.5\]", lines[2])
    assert len(lines) == 3 and "\x1b" not in done.stderr and "\r" not in done.stderr


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
    assert "\x1b[" in shown.decode() and "something to know" in text
    last = text.strip().splitlines()[-1]
    assert re.search(r"train ━+ 100% 4/4 .* step/s .*loss=0.5", text) and "evaluate" in text, last
