"""A user's mistakes. Each message is one line: what, where, and what to do."""


class SegquantError(Exception):
    """Base of every error that a command prints as one line, exiting with code 2."""


class ConfigError(SegquantError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(SegquantError):
    """A data set, image, label or shard is missing or broken."""


class ModelError(SegquantError):
    """A model or an artifact is missing, broken or does not fit."""


class UnavailableError(SegquantError):
    """A method or device that this machine cannot run."""
