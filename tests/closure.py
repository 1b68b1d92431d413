"""Which rooms of src/segquant a stage script runs: the closure of its imports, read from the source.

A room is a folder or a single module beside them. `python tests/closure.py` writes the rooms into the deps of every
dvc.yaml.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


def closure(script: Path) -> set[str]:
    """Paths, relative to the repository, of every segquant file that `script` imports, however deep,
    and the files beside them that they name, as templates are."""
    seen: set[Path] = set()
    pending = [script]
    while pending:
        for path in _imports(pending.pop()):
            if path not in seen:
                seen.add(path)
                pending.append(path)
    named = {path for module in seen for path in _beside(module)}
    return {str(path.relative_to(ROOT)) for path in seen | named}


def rooms(script: Path) -> set[str]:
    """The rooms that `script` reaches, as deps; the package's own __init__.py, in which nothing computes, is none."""
    parts = [Path(path).parts for path in closure(script)]
    return {"/".join(part[:3]) for part in parts} - {"src/segquant/__init__.py"}


@cache
def _beside(module: Path) -> set[Path]:
    text = module.read_text()
    files = (path for path in module.parent.iterdir() if path.is_file() and path.suffix != ".py")
    return {path for path in files if f'"{path.name}"' in text}


@cache
def _imports(path: Path) -> set[Path]:
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this reader does not follow"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            found |= _files(name)
    return found


def _files(name: str) -> set[Path]:
    """The module's own file and the __init__.py of each package above it."""
    parts = name.split(".")
    if parts[0] != "segquant":
        return set()
    found = set()
    for depth in range(1, len(parts) + 1):
        base = SOURCE.joinpath(*parts[:depth])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                found.add(path)
    return found


def write_deps(pipeline: Path) -> None:
    """Put each script's rooms after it in the deps of a dvc.yaml, in place of the code that stands there."""

    def block(match: re.Match) -> str:
        indent, script = match.groups()
        return "".join(f"{indent}- {path}\n" for path in (script, *sorted(rooms(ROOT / script))))

    text = pipeline.read_text()
    pipeline.write_text(re.sub(r"^( *)- (stages/\w+\.py)\n(?:\1- src/.*\n)*", block, text, flags=re.M))


if __name__ == "__main__":
    for folder in ("", "stages", "models", "metrics"):
        write_deps(ROOT / folder / "dvc.yaml")
