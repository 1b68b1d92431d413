"""One function for each target of foreign text; tests/report/test_hostile_text.py sends names through the commands."""

import ast
import csv
import io
import random

import pytest
from conftest import ROOT

from segquant.base.files import csv_rows, csv_text, write_text
from segquant.base.text import from_csv, in_csv, in_markdown, on_terminal

GOOD = ["Bäume", "道路", "שמיים", "e\u0301tage", "👩\u200d🚀", "semi;colon", "a, b", "swivel chair", "1.5 µm (x/y)"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x9b31m\x7f", "\\x1b[2J\\x9b31m\\x7f"),
        ("a\r\nb\tc\x85d\u2028e", "a\\r\\nb\\tc\\x85d\\u2028e"),
        ("\u202ea\u2066b\u2069", "\\u202ea\\u2066b\\u2069"),
        ("\u200ea\u200fb\u061c", "\\u200ea\\u200fb\\u061c"),
        ("\ud800\udc9b", "\\ud800\\udc9b"),
        *((name, name) for name in GOOD),
    ],
)
def test_a_terminal_shows_what_is_hidden(text, line):
    assert on_terminal(text) == line


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(1)", "+road", "-", "-a", "＝1", " =1", "'=1"])
def test_csv_has_no_formula(text):
    assert in_csv(text) == f"'{text}" and from_csv(in_csv(text)) == text


def test_csv_keeps_numbers_and_names_and_guards_what_a_semicolon_parts():
    for cell in (-0.5, None, 3, "-0.50", "+0.25", "-1e-05", "-inf", "nan", *GOOD, "'tis", "a-b", "a=b"):
        assert in_csv(cell) == cell
    assert in_csv("a;=cmd") == "a;'=cmd" and from_csv("a;'=cmd") == "a;=cmd"
    assert in_csv("\t=1") == "\\t=1" and in_csv("a\rb\n=1") == "a\\rb\\n=1"


def test_csv_is_read_back_as_it_was_written():
    chance = random.Random(0)
    rows = [
        ["".join(chance.choices("=+-@';, \"a1.道＝\\", k=chance.randint(0, 6))) for _ in range(3)] for _ in range(3000)
    ]
    text = csv_text(rows, ["x", "y", "z"])
    assert [list(row.values()) for row in csv_rows(text)] == rows
    for row in csv.reader(io.StringIO(text)):
        for part in (part.strip() for cell in row for part in cell.split(";")):
            assert not part.startswith(("=", "@", "＝")), row
    assert list(csv_rows("a,b\n1\n1,2,3\n")) == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    "text",
    [
        "</details><h1>x",
        "a|b",
        "`x`",
        "![x](http://e/x.png)",
        "@everyone",
        "see http://e/x",
        "www.e.com",
        "#12",
        "GH-12",
        "*x*",
        "_x_",
        "~~x~~",
        "$x$",
        ":car:",
        "&lt;",
        "a\\",
        "a\nb",
        "- x",
        "1. x",
        "===",
    ],
)
def test_markdown_has_foreign_markup_as_code(text):
    code = in_markdown(text)
    assert code.startswith("<code>") and code.endswith("</code>")
    inner = code.removeprefix("<code>").removesuffix("</code>")
    assert not set(inner) & set("<>|`*_[]\\@$:.()!\n~-=")
    import html

    assert html.unescape(inner) == on_terminal(text)


@pytest.mark.parametrize(
    "text", [*GOOD, "int8_static", "-0.25", "fixed-64x64-v1, 2 images", "int8 failed: no CUDA. ❌"]
)
def test_markdown_keeps_plain_text(text):
    assert in_markdown(text) == text


def test_half_a_character_is_written_as_an_escape(tmp_path):
    write_text(tmp_path / "page.html", "half \ud800 道")
    assert (tmp_path / "page.html").read_bytes() == "half \\ud800 道".encode()


def test_all_that_prints_goes_through_one_function():
    """`print` stands where the text is made harmless, holds nothing foreign, or is Markdown that was made so."""
    allowed = {"base/text.py", "base/entry.py", "base/progress.py", "base/schema.py", "warm.py", "commands/review.py"}
    allowed |= {"hello.py", "pace.py"}  # before anything is installed, from harmless cells; two numbers of ours
    printing = set()
    for root in (ROOT / "src" / "segquant", ROOT / "stages"):
        for path in root.rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            if any(getattr(call.func, "id", "") == "print" for call in calls):
                printing.add(path.relative_to(root).as_posix())
    assert printing == allowed
