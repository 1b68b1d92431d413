"""Errors that a user can fix. Each message is one line: what is wrong, where, and what to do."""

import errno


class SegquantError(Exception):
    """Base class. A command prints the message as one line and exits with `exit_code`."""

    exit_code = 2


class ConfigError(SegquantError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(SegquantError):
    """A data set, image, label or shard is missing or broken."""


class ModelError(SegquantError):
    """A model or an artifact is missing or broken, or does not fit."""


class UnavailableError(SegquantError):
    """This machine cannot run a method or use a device."""


class MethodsFailed(SegquantError):
    """Some methods failed. What the others gave is written."""

    exit_code = 4


def one_line(error: BaseException, limit: int = 300, end: bool = False) -> str:
    """The message of any error in one line of at most `limit` characters, of a longer one the start or the `end`.

    Of a word that is longer than any path, such as a value from a file, only the start is given. An error without a
    message gives the name of its type.
    """
    words = (word if len(word) <= 1000 else f"{word[:100]}..." for word in str(error).split())
    text = " ".join(words) or type(error).__name__
    if len(text) <= limit:
        return text
    return f"...{text[-limit:]}" if end else f"{text[:limit]}..."


def system_reason(error: OSError) -> str:
    """What the system says, in one line; for a full disk, what to do as well."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = " ".join((error.strerror or str(error)).split())
    return f"{reason}: free some space, and run it again" if full else reason
