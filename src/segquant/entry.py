"""What every command and stage shares: logging, and a user's mistake as one line with exit code 2."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable

from segquant.errors import SegquantError


def setup_logging(verbose: bool = False) -> None:
    """Log to stderr: INFO, or DEBUG when verbose; third parties from WARNING."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("segquant").setLevel(logging.DEBUG if verbose else logging.INFO)


def run(main: Callable[[], None]) -> None:
    """Call `main`; exit 2 with one line for a SegquantError or an OSError, 130 when interrupted.

    141, and no line, when the reader of its output has left, as `head` does.
    """
    setup_logging("--verbose" in sys.argv)
    gc.freeze()  # what has been imported stays
    gc.enable()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes when it ends
        sys.exit(141)
    except SegquantError as error:
        sys.exit(_fail(f"error: {' '.join(str(error).split())}", 2))
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(_fail(f"error: {error.filename or 'input or output'}: {error.strerror or error}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    finally:
        gc.freeze()  # or the interpreter looks through torch and transformers once more as it ends: 2 s


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
