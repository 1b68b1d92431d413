"""What every command and stage shares: logging, and a user's mistake as one line with exit code 2."""

from __future__ import annotations

import gc
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from segquant.base.errors import SegquantError

log = logging.getLogger(__name__)


PACKAGES = ("segquant", "torch", "torchao", "transformers", "numpy", "pillow", "pyarrow", "onnxruntime", "openvino")


def setup_logging(verbose: bool = False, file: Path | None = None) -> None:
    """Log to stderr: INFO, or DEBUG when verbose; third parties from WARNING. To `file`, made anew, DEBUG as well."""
    stderr = _Stderr()
    stderr.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    stderr.setLevel(logging.DEBUG if verbose else logging.INFO)
    handlers: list[logging.Handler] = [stderr]
    if file:
        handlers.append(_file_handler(file))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    logging.getLogger("segquant").setLevel(logging.DEBUG)
    logging.captureWarnings(True)


class _Stderr(logging.StreamHandler):
    """To sys.stderr as it is at the time: a progress bar puts itself in its place, and stays below what is written."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


def _file_handler(path: Path) -> logging.Handler:
    """A log that begins with what a later reader needs: the command, versions, and the parameters as they stood."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    params = Path("params.yaml")
    head = [
        f"command: {' '.join(sys.orig_argv)}",
        f"versions: python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        f"machine: {platform.platform()}, {os.cpu_count()} cores",
        f"params.yaml:\n{params.read_text()}" if params.is_file() else "no params.yaml here",
    ]
    for line in head:
        handler.emit(logging.LogRecord("segquant", logging.INFO, __file__, 0, "%s", (line,), None))
    return handler


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _stage_log() -> Path | None:
    """logs/STAGE.log where a stage script runs, named as DVC names the stage; None elsewhere and on other ranks."""
    script = getattr(sys.modules["__main__"].__spec__, "name", "")
    if not script.startswith("stages.") or int(os.environ.get("RANK", 0)):
        return None
    name = os.environ.get("DVC_STAGE", script.removeprefix("stages."))
    return Path("logs") / f"{name.split(':')[-1]}.log"


def run(main: Callable[[], None]) -> None:
    """Call `main`; exit 2 with one line for a SegquantError or an OSError, 130 when interrupted.

    141, and no line, when the reader of its output has left, as `head` does.
    """
    start = time.perf_counter()
    gc.freeze()  # what has been imported stays
    gc.enable()
    try:
        setup_logging("--verbose" in sys.argv, _stage_log())
        main()
        sys.stdout.flush()
        log.debug("done in %.1f s", time.perf_counter() - start)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes when it ends
        sys.exit(141)
    except SegquantError as error:
        log.debug("stopped", exc_info=True)
        sys.exit(_fail(f"error: {' '.join(str(error).split())}", 2))
    except OSError as error:  # a full disk, a folder that may not be written
        log.debug("stopped", exc_info=True)
        sys.exit(_fail(f"error: {error.filename or 'input or output'}: {error.strerror or error}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except Exception:
        log.debug("failed", exc_info=True)
        raise
    finally:
        gc.freeze()  # or the interpreter looks through torch and transformers once more as it ends: 2 s


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
