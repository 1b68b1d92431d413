"""Random mistakes in bytes, in JSON values, and in YAML. Each follows from the state of `draw`."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any


def bytes_changed(data: bytes, draw: random.Random) -> bytes:
    """Flip bytes, cut the end off, or remove, repeat or zero a part."""
    data, size = bytearray(data), len(data)
    start = draw.randrange(size)
    end = min(size, start + draw.choice([1, 4, 64, 1024]))
    match draw.randrange(6):
        case 0 | 1:
            for _ in range(draw.choice([1, 3, 20])):
                data[draw.randrange(size)] = draw.randrange(256)
        case 2:
            del data[start:]
        case 3:
            del data[start:end]
        case 4:
            data[start:start] = data[start:end]
        case 5:
            data[start:end] = bytes(end - start)
    return bytes(data)


ODD = (None, True, 0, -1, 1, 3, 2.5, 10**9, 10**30, 1e308, math.nan, math.inf, "", "x", "x" * 10_000, "\x1b[2J", [], {})
ODD_TEXTS = ("", "-1", "0", "1e999", ".nan", "[[[[", "{a: {b: c}}", "*x", "&x [*x]", "!!python/name:os", "'", "9" * 400)


def value_changed(value: Any, draw: random.Random) -> Any:
    """A JSON value with one part, at any depth, dropped, replaced or repeated."""
    value = copy.deepcopy(value)
    holder, key, part = None, None, value
    while isinstance(part, dict | list) and part and (holder is None or draw.random() < 0.75):
        holder = part
        key = draw.choice(list(part)) if isinstance(part, dict) else draw.randrange(len(part))
        part = part[key]
    if holder is None:
        return draw.choice(ODD)
    match draw.randrange(5):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [part, part]
        case 2 if isinstance(part, int | float):
            holder[key] = part * draw.choice([-1, 2, 1000, 0.5])
        case _:
            holder[key] = draw.choice(ODD)
    return value


def text_changed(text: str, draw: random.Random) -> str:
    """YAML with one line dropped, repeated, indented, or given another value; or with bytes changed."""
    lines = text.splitlines()
    at = draw.choice([i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")])
    match draw.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines[at] = " " * draw.randrange(1, 5) + lines[at]
        case 3 | 4:
            lines[at] = lines[at].split(":")[0] + ": " + draw.choice(ODD_TEXTS)
        case 5:
            return bytes_changed(text.encode(), draw).decode(errors="replace")
    return "\n".join(lines) + "\n"


def header_changed(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file with a mistake in its header."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(value_changed(json.loads(data[8 : 8 + size]), draw)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
