"""segquant's commands as forks of a process that has imported torch and transformers, which takes five seconds.

With a GPU they are spawned: importing torchao starts CUDA, and no fork can use it then. Each imports this file, which
is why it imports no pytest.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from segquant import lanes
from segquant.base.entry import run
from segquant.cli import cli
from segquant.evaluation import speed
from segquant.warm import PRELOADED

SERVER = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
SERVER.set_forkserver_preload(
    ["segquant.cli", "segquant.runs", "segquant.report.layers", "segquant.evaluation.speed", *PRELOADED]
)
ROOT = Path(__file__).resolve().parents[1]


def segquant(*arguments):
    with tempfile.TemporaryDirectory() as folder:
        process = SERVER.Process(target=_called, args=([*map(str, arguments)], folder))
        process.start()
        process.join()
        stdout, stderr = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)


def errors(done):
    """The lines on stderr but for those of INFO, and for the one that the small model's classes have no names."""
    nameless = "WARNING segquant.data.label_map: the 150 classes of the model have no names: "
    return [line for line in done.stderr.splitlines() if not line.startswith(("INFO", nameless))]


def _called(arguments, folder):
    os.chdir(ROOT)
    os.environ["COLUMNS"] = "200"
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["segquant", *arguments]
    if not torch.cuda.is_available():
        lanes.subprocess = SimpleNamespace(run=_timer())
    cli()


def _timer():
    """A function that times in a fork of this process as it is now; evaluation/test_speed.py starts fresh ones.

    It takes what subprocess.run does. Imports would take 6 s, and engines that have started do not outlive a fork.
    """
    here, there = multiprocessing.Pipe()
    if not os.fork():
        here.close()
        with contextlib.suppress(EOFError):  # the command has ended
            while True:
                there.send(_speed(*there.recv()))
        os._exit(0)
    there.close()

    def run_timing(command, **_options):
        assert command[1:4] == ["-m", "segquant.evaluation.speed", "--attached"]
        with tempfile.NamedTemporaryFile() as stderr:
            here.send((command[4:], stderr.name))
            return SimpleNamespace(returncode=here.recv(), stderr=Path(stderr.name).read_text())

    return run_timing


def _speed(arguments, stderr):
    """Run the module in a fork; return its exit code."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    sys.argv = ["speed", *arguments]
    code = 1
    try:
        run(speed.main)
        code = 0
    except SystemExit as exit:
        code = exit.code
    finally:
        sys.stderr.flush()
        os._exit(code)
