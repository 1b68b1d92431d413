"""One method's failure, which the others survive, and what stops them all."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping
from typing import Any

from segquant.base.errors import ModelError, SegquantError, one_line
from segquant.base.ranks import ranks
from segquant.base.temporary import TEMPORARY

log = logging.getLogger(__name__)
MISSING = ("unavailable", "failed")  # why a method has no figures: this machine cannot run it, or it went wrong
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_LONGEST = 300  # characters of a reason


def missing(content: Mapping[str, Any]) -> dict[str, str]:
    """{"unavailable" or "failed": the reason} that a method's JSON names in place of figures; {} where it has these."""
    return {key: content[key] for key in MISSING if key in content}


def failure(name: str, error: Exception, needed: bool = False) -> dict[str, str]:
    """{"failed": the reason in one line} of `error`, which stopped the work on `name`; the traceback is logged (DEBUG).

    Raises `error` itself where files cannot be written or read, as on a full disk, and ModelError where the others
    cannot do without `name` (`needed`) or processes of torchrun wait for this one.
    """
    log.debug("%s failed", name, exc_info=error)
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno in _STORAGE:
            raise error
        cause = cause.__cause__
    text = one_line(error, _LONGEST)
    if not isinstance(error, SegquantError) and text != type(error).__name__:
        text = f"{type(error).__name__}: {text}"
    text = re.sub(rf"{re.escape(TEMPORARY)}[^/]*/", "", text)  # the same reason whenever it happens
    if needed or ranks()[1] > 1:
        raise ModelError(f"{name} failed: {text}") from error
    log.warning("%s failed: %s", name, text)
    return {"failed": text}
