"""The frame around every command and stage: logging, and errors as one line with an exit code."""

from __future__ import annotations

import gc
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from segquant.base.errors import SegquantError, one_line, system_reason
from segquant.base.text import on_terminal, shown_url

log = logging.getLogger(__name__)

PACKAGES = ("segquant", "torch", "torchao", "transformers", "numpy", "pillow", "pyarrow", "onnxruntime", "openvino")


def setup_logging(verbose: bool = False, file: Path | None = None) -> None:
    """Log to stderr from INFO, or from DEBUG if `verbose`, and to a new `file` from DEBUG.

    Other packages log from WARNING.
    """
    stderr = _Stderr()
    stderr.setFormatter(_Visible("%(levelname)s %(name)s: %(message)s"))
    stderr.setLevel(logging.DEBUG if verbose else logging.INFO)
    handlers: list[logging.Handler] = [stderr]
    if file:
        handlers.append(_file_handler(file))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    logging.getLogger("segquant").setLevel(logging.DEBUG)
    logging.captureWarnings(True)


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Log to a new `file` too, from DEBUG, until the block ends."""
    handler = _file_handler(file)
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception:
        log.debug("stopped", exc_info=True)
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _Stderr(logging.StreamHandler):
    """Looks up sys.stderr for each record: rich replaces it while a bar moves, to write above the bar."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


class _Visible(logging.Formatter):
    """Shows records by `on_terminal`; their further lines are indented, so that no text passes for a record."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(map(on_terminal, super().format(record).rstrip("\n").split("\n")))


def _file_handler(path: Path) -> logging.Handler:
    """A log file that starts with the command, the versions, the machine and params.yaml."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # not what a link leads to
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    params = Path("params.yaml")
    lines = [
        f"command: {_public(' '.join(sys.orig_argv))}",
        f"versions: python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        f"machine: {platform.platform()}, {os.cpu_count()} cores",
        f"params.yaml:\n{_public(params.read_text())}" if params.is_file() else "no params.yaml in this folder",
    ]
    for line in lines:
        handler.emit(logging.LogRecord("segquant", logging.INFO, __file__, 0, "%s", (line,), None))
    return handler


def _public(text: str) -> str:
    """`text` with its URLs by `shown_url`, without passwords and signatures."""
    return re.sub(r"\w+://[^\s'\"]+", lambda match: shown_url(match[0]), text)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _stage_log() -> Path | None:
    """logs/STAGE.log for a stage script on the first rank, else None. DVC gives the stage's name in DVC_STAGE."""
    script = getattr(sys.modules["__main__"].__spec__, "name", "")
    if not script.startswith("stages.") or int(os.environ.get("RANK", 0)):
        return None
    name = os.environ.get("DVC_STAGE", script.removeprefix("stages."))
    return Path("logs") / f"{name.split(':')[-1]}.log"


def run(main: Callable[[], None]) -> None:
    """Call `main` and turn its errors into exit codes.

    A SegquantError is one line on stderr and its `exit_code`, an OSError one and 2; Ctrl-C is code 130. If the reader
    of stdout has closed it, as `head` does, the code is 141 without a line. Any other exception is a fault of the
    program: one line that says so, and 1; the traceback is logged.
    """
    start = time.perf_counter()
    gc.freeze()  # collections skip the imported modules, which stay anyway
    gc.enable()
    try:
        setup_logging("--verbose" in sys.argv, _stage_log())
        main()
        sys.stdout.flush()
        log.debug("done in %.1f s", time.perf_counter() - start)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout as it ends
        sys.exit(141)
    except SegquantError as error:
        log.debug("stopped", exc_info=True)
        sys.exit(_fail(f"error: {one_line(error, 10_000)}", error.exit_code))
    except OSError as error:  # such as a full disk or a read-only folder
        log.debug("stopped", exc_info=True)
        sys.exit(_fail(f"error: {error.filename or 'input or output'}: {system_reason(error)}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except Exception as error:
        log.debug("failed", exc_info=True)
        line = f"error: a fault of the program, {type(error).__name__}: {one_line(error)}"
        sys.exit(_fail(f"{line}: --verbose shows where; please report it", 1))
    finally:
        if "triton" in sys.modules:  # of a torch for CUDA: as Python ends it lists what was not collected, on stderr
            gc.unfreeze()
        else:
            gc.freeze()  # else a last collection over torch and transformers takes 2 s


def _fail(line: str, code: int) -> int:
    print(on_terminal(line), file=sys.stderr)
    return code
