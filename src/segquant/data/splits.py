"""Names that data sets give to the same split."""

_SAME = (("train", "training"), ("val", "validation", "valid"))


def names_of(split: str) -> list[str]:
    """The split's name as it was given, then the others that it goes by."""
    others = next((names for names in _SAME if split in names), ())
    return [split, *(name for name in others if name != split)]
