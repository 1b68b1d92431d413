"""Foreign text made harmless where it is written: on a terminal or in a log, in a CSV cell, in Markdown.

Names of classes, files and data sets, parameters and reasons may come from strangers. The HTML page needs no function:
its template escapes them (report/page.py).
"""

from __future__ import annotations

import json
import re
from typing import Any

# Controls, what ends a line or turns the direction of writing, and halves of characters, which no file can hold.
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# A spreadsheet takes a cell for a formula by its first character; where `;` parts cells, by the one behind it too.
_FORMULA = re.compile(r"(?<![^;])('*)(?=\s*[=+\-@＝＋－＠])")
_SHIELDED = re.compile(r"(?<![^;])'('*)(?=\s*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|-?inf|nan", re.IGNORECASE)

# What GitHub may take for markup, a mention, a link, an emoji or mathematics; at the start, for a list or a line.
_MARKUP = re.compile(
    r"[`*<>\[\]\\|&@#~$]|(?<!\w)_|_(?!\w)|://|\bwww\.|:[\w+-]+:|\bGH-[0-9]|^\s*([-+]|[0-9]+[.)])\s|^\s*[-=]+\s*$",
    re.IGNORECASE,
)
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def on_terminal(text: object) -> str:
    r"""`text` in one line that moves no cursor and sets no colour: what would becomes an escape that shows, `\x1b`.

    Letters of all languages and emoji stay as they are.
    """
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def say(text: str) -> None:
    """Print a line to stdout, `on_terminal`."""
    print(on_terminal(text))


def say_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON to stdout, in ASCII without controls."""
    print(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))  # all others, json writes so itself


def in_csv(cell: Any) -> Any:
    """A cell of CSV: numbers as they are, text `on_terminal`, with an apostrophe before what begins like a formula."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return _FORMULA.sub(r"\1'", on_terminal(cell))


def from_csv(cell: str) -> str:
    """The text that `in_csv` was given, but for controls, which stay escapes."""
    return _SHIELDED.sub(r"\1", cell)


def in_markdown(text: object) -> str:
    """`text` in one line of Markdown, also in a table: as it is, or literal as code where GitHub would see markup."""
    line = on_terminal(text)
    if not _MARKUP.search(line):
        return line
    return f"<code>{_PUNCTUATION.sub(lambda match: f'&#{ord(match[0])};', line)}</code>"


def is_utf8(text: str) -> bool:
    """Whether UTF-8 has this text. It has no halves of characters, as Python makes of some bytes in files' names."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_url(url: str) -> str:
    """A URL as messages and records give it: without user, password, query and fragment. Other text stays."""
    scheme, mark, rest = url.partition("://")
    host, path, secrets = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()
    if not mark:
        return url
    if "@" in host or (":" in host and "@" in rest):  # a password may hold a slash or a question mark
        return f"{scheme}://..."
    return f"{scheme}://{host}{path}{'?...' if secrets else ''}"
