"""Run a command whose stages skip their imports: each is a fork of one process that has imported torch already.

    python -m segquant.warm dvc repro

Importing torch, transformers and torchao takes a stage 5 s; a fork of a process that holds them starts at once. The
process holds no code of segquant: a stage runs what its folder holds. A stage stays plain Python where a fork could
differ: in another environment, on another system than Linux, and with a torch built for CUDA. So does `benchmark`,
whose memory and load time are those of a fresh process.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

SOCKET = "SEGQUANT_WARM"
FRESH = "stages.benchmark"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PRELOADED = (  # not wandb, which makes a temporary folder that the first fork would remove
    "torch._dynamo",
    "torchao.quantization",
    "transformers.models.segformer.modeling_segformer",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pandas",  # which pyarrow imports as it makes its first array
    "rich.progress",
    "pydantic.dataclasses",
    "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer",
    "onnxscript.function_libs.torch_lib.ops",
)
# Variables that these imports do not read. With any other that differs, a stage stays plain Python.
UNREAD = ("DVC_", "GIT_", "MAKE", "MFLAGS", "NETRC", "OLDPWD", "PATH", "PWD", "PYTEST_", "SEGQUANT_", "SHLVL", "WANDB_")


def hand_over() -> None:
    """Let a fork run this stage, and exit as it does. Returns where this process has to run it.

    A signal reaches the fork; if this process is killed, the fork is as well.
    """
    address, command = os.environ.get(SOCKET), sys.orig_argv
    if not address or command[1:2] != ["-m"] or not command[2].startswith("stages.") or command[2] == FRESH:
        return
    with socket.socket(socket.AF_UNIX) as server, server.makefile() as replies:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            server.connect(address)
            socket.send_fds(server, [b"\n"], [0, 1, 2])
            request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
            server.sendall(json.dumps(request).encode() + b"\n")
            if fork := replies.readline():
                for number in SIGNALS:
                    if signal.getsignal(number) == signal.SIG_IGN:  # as nohup and a shell's & leave it
                        continue
                    signal.signal(number, lambda number, _: os.kill(int(fork), number))
        except OSError:  # the process has ended
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if not fork:
            return
        code = int(replies.readline() or -signal.SIGKILL)
    if code < 0:
        if -code in SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _fork() -> int:
    """os.fork, but the new process dies with this one."""
    process = os.fork()
    if not process:
        _end_with_parent()
    return process


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _stage(listener: socket.socket, environment: dict[str, str]) -> dict[str, Any] | None:
    """In a new fork, the request of a stage; in this process None, once standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while select.select([listener, sys.stdin], [], [])[0] == [listener]:
        with listener.accept()[0] as stage:
            if _fork():
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _, files, _, _ = socket.recv_fds(stage, 1, 3)
            with stage.makefile() as lines:
                request = json.loads(lines.readline())
            if _relevant(request["environment"]) != environment:
                os._exit(0)
            process = _fork()
            for number, file in enumerate(files):
                if not process:
                    os.dup2(file, number)
                os.close(file)
            if process:
                _wait(process, stage)
            return request
    return None


def _relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an import may read."""
    return {name: value for name, value in environment.items() if name != "_" and not name.startswith(UNREAD)}


def _wait(process: int, stage: socket.socket) -> None:
    """Report the stage's process number and exit code, and exit. Kills it where nobody is there to hear of it."""
    stage.sendall(b"%d\n" % process)
    ended = os.pidfd_open(process)
    if ended not in select.select([ended, stage], [], [])[0]:
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        stage.sendall(b"%d\n" % code)
    finally:
        os._exit(0)


def _serve(listener: socket.socket) -> None:
    """Import, and become a stage in each fork."""
    code: int | None = None

    def leave() -> None:
        """End a stage without freeing its memory, which it shares with this process: that would copy it, for 0.4 s."""
        if code is not None:
            sys.stdout.flush()
            ctypes.CDLL(None).fflush(None)  # what libraries in C have printed
            os._exit(code)

    atexit.register(leave)  # before all imports, so that it comes last
    environment = _relevant(os.environ)  # before imports add to it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a stage passes on what it does not ignore
    gc.disable()  # as in every stage, until segquant.base.entry.run
    import torch

    if torch.version.cuda:  # a fork cannot use a device that an import has looked for
        return
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):  # of an extra that is not installed
            importlib.import_module(name)
    gc.freeze()
    request = _stage(listener, environment)
    if request is None:
        return
    listener.close()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    os.environ.clear()
    os.environ.update(request["environment"])
    del os.environ[SOCKET]  # a fork hands nothing over
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.orig_argv = request["command"]
    sys.argv = sys.orig_argv[2:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else None
        raise


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Give the environment of a command whose stages are forks, until the block ends."""
    if sys.platform != "linux":
        yield dict(environment)
        return
    with tempfile.TemporaryDirectory(prefix="segquant-") as folder:
        address = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            server = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno())],
                env=dict(environment),
                stdin=subprocess.PIPE,  # it ends when this does
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches a fork through its stage
                pass_fds=[listener.fileno()],
            )
        with server:
            try:
                yield {**environment, SOCKET: address}
            finally:
                server.kill()  # it may be importing still


def main() -> None:
    """Run the command that the arguments are, and exit as it does."""
    if not sys.argv[1:]:
        _fail("give a command, such as: python -m segquant.warm dvc repro")
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the command too, which ends in its own way
    with forks(os.environ) as environment:
        try:
            running = subprocess.Popen(sys.argv[1:], env=environment, preexec_fn=_end_with_parent)
        except OSError as error:
            _fail(f"{sys.argv[1]} cannot be run: {error.strerror}")
        signal.signal(signal.SIGTERM, lambda number, _: running.send_signal(number))
        code = running.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if __spec__:
        main()
    else:
        _serve(socket.socket(fileno=int(sys.argv[1])))
