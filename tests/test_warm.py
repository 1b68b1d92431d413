"""Stages as forks of a process that has imported torch: the same as plain Python, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from clones import ENV
from conftest import ROOT

from segquant.warm import SOCKET

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux only")
for_cuda = torch.version.cuda is not None
forked = pytest.mark.skipif(for_cuda, reason="with a torch built for CUDA, every stage is plain Python")

SLEEPER = """
import os, pathlib, sys, time
try:
    pathlib.Path("pid").write_text(str(os.getpid()))
    known = [name in sys.modules for name in ("torch", "segquant.models")]
    print(*known, os.environ.get("SEGQUANT_WARM"), sys.argv[1:], flush=True)
    if sys.argv[1:] == ["stop"]:
        sys.exit(7)
    if sys.argv[1:] == ["fail"]:
        raise ValueError("wrong")
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""

ENDING = """
import atexit, ctypes, sys, threading, time
class Freed:
    def __del__(self):
        print("freed")
kept = Freed()
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
ctypes.CDLL(None).puts(b"C")
print("last")
if sys.argv[1:]:
    sys.exit(*map(int, sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path):
    """A project with one stage of its own."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text((ROOT / "stages/__init__.py").read_text())
    (tmp_path / "stages/sleeper.py").write_text(SLEEPER)
    return tmp_path


def start(folder, environment, *arguments, ignored=None):
    """A stage in a process of its own, which hears Ctrl-C unless it is `ignored`, as by a shell's &."""
    command = [sys.executable, "-m", "stages.sleeper", *arguments]
    heard = partial(signal.signal, signal.SIGINT, ignored or signal.default_int_handler)
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-1, preexec_fn=heard)


def gone(process):
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@forked
def test_a_stage_is_a_fork_with_its_own_arguments_output_and_exit_code(folder, warm):
    stopped = start(folder, warm, "stop")
    assert stopped.communicate() == ("True False None ['stop']\n", "") and stopped.returncode == 7
    failed = start(folder, warm, "fail")
    output, errors = failed.communicate()
    assert failed.returncode == 1 and errors.startswith("Traceback") and errors.endswith("ValueError: wrong\n")
    (folder / "stages/sleeper.py").write_text("print(2)")  # the code is read by each
    assert start(folder, warm).communicate() == ("2\n", "")


@forked
def test_a_benchmark_is_a_process_of_its_own(folder, warm):
    (folder / "stages/benchmark.py").write_text("import sys; print('torch' in sys.modules)")
    command = [sys.executable, "-m", "stages.benchmark"]
    assert subprocess.check_output(command, cwd=folder, env=warm, text=True) == "False\n"


@forked
@pytest.mark.parametrize("code", [[], ["0"], ["3"]])
def test_a_fork_ends_as_python_does_but_frees_no_memory(folder, warm, code):
    (folder / "stages/sleeper.py").write_text(ENDING)
    plain, fork = (start(folder, environment, *code) for environment in ({**warm, SOCKET: ""}, warm))
    of_plain, of_fork = (process.communicate()[0].splitlines() for process in (plain, fork))
    assert sorted(of_plain) == ["C", "freed", "last", "registered", "thread"], of_plain
    assert of_fork == [line for line in of_plain if line != "freed"]
    assert plain.returncode == fork.returncode == int(*code or [0])


@pytest.mark.parametrize("changed", [{"OMP_NUM_THREADS": "7"}, {SOCKET: "nowhere"}, {SOCKET: ""}])
def test_a_stage_is_plain_python_elsewhere(folder, warm, changed):
    plain = start(folder, {**warm, **changed}, "stop")
    assert plain.communicate()[0].startswith("False False") and plain.returncode == 7


@pytest.mark.skipif(not for_cuda, reason="needs a torch built for CUDA")
def test_with_a_torch_for_cuda_a_stage_is_plain_python(folder, warm):
    plain = start(folder, warm, "stop")
    assert plain.communicate()[0] == f"False False {warm[SOCKET]} ['stop']\n" and plain.returncode == 7


@forked
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_the_fork_too(folder, warm, number, code):
    stage = start(folder, warm)
    assert stage.stdout.readline().startswith("True")
    fork = int((folder / "pid").read_text())
    assert fork != stage.pid
    stage.send_signal(number)
    assert stage.wait(10) == code, stage.stderr.read()
    assert gone(fork)


@forked
def test_an_ignored_signal_does_not_reach_the_fork(folder, warm):
    stage = start(folder, warm, ignored=signal.SIG_IGN)
    assert stage.stdout.readline().startswith("True")
    stage.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        stage.wait(1)
    stage.kill()


@forked
def test_a_fork_that_is_killed_is_no_success(folder, warm):
    stage = start(folder, warm)
    assert stage.stdout.readline().startswith("True")
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    assert stage.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "line"), [((), "give a command, such as"), (("nowhere",), "nowhere cannot be run: ")]
)
def test_a_command_that_is_none_is_one_line(command, line):
    done = subprocess.run(
        [sys.executable, "-m", "segquant.warm", *command], env=ENV, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1


def test_a_command_that_ends_at_once_waits_for_no_import():
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "segquant.warm", "true"], env=ENV, check=True)
    assert time.monotonic() - start < 2  # 0.1 on a quiet machine, where the imports take 5


@forked
def test_nothing_is_left_of_a_command_that_ends_or_is_killed(folder):
    command = [sys.executable, "-m", "segquant.warm", "sh", "-c", "echo $SEGQUANT_WARM; exit 5"]
    ended = subprocess.run(command, cwd=folder, env=ENV, text=True, capture_output=True, check=False)
    address = ended.stdout.rstrip()
    assert ended.returncode == 5 and address and not os.path.exists(address)
    command[-1] = f"exec {sys.executable} -m stages.sleeper"
    killed = subprocess.Popen(command, cwd=folder, env=ENV, text=True, stdout=-1)
    assert killed.stdout.readline().startswith("True")
    killed.kill()
    assert gone(int((folder / "pid").read_text()))


@forked
def test_a_command_ends_with_the_process_that_started_it(folder):
    """DVC would go on to the last stage, whose imports nothing saves any more."""
    command = [sys.executable, "-m", "segquant.warm", "sh", "-c", "echo $$; sleep 60; true"]
    killed = subprocess.Popen(command, cwd=folder, env=ENV, text=True, stdout=-1)
    number = int(killed.stdout.readline())
    killed.kill()
    assert gone(number)
