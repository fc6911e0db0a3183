"""Which code made a result: a hash of every module that can shape one, comments and docstrings apart.

A key names parameters and data; code that is edited changes numbers under the same key. So every run
records the modules it is made of, and readers name those that differ today. What an edit changes in
meaning still has to raise `runs.SCHEMA_VERSION`: then every run is trained anew.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Rooms whose code shapes weights or metrics: console, command line, tracking and tables do not.
SHAPING = ("boxes", "types", "data", "models", "distill", "train", "evaluate")
EVALUATING = ("boxes", "types", "data", "models", "evaluate")
_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)


def of_training(method: str) -> dict[str, str]:
    """Module -> hash, of all that can shape the weights of a run with that distiller."""
    return _closure(("fsd.train.stage", f"fsd.distill.{method}"), SHAPING)


def of_evaluation() -> dict[str, str]:
    """Module -> hash, of all that can shape the metrics of given weights."""
    return _closure(("fsd.evaluate.stage",), EVALUATING)


def _closure(roots: Iterable[str], rooms: Iterable[str]) -> dict[str, str]:
    """The roots and what they import, directly or not, within these rooms."""
    rooms, todo, found = set(rooms), list(roots), {}
    while todo:
        name = todo.pop()
        if name in found or name.split(".")[1] not in rooms or not module_hash(name):
            continue
        found[name] = module_hash(name)
        todo += _imports(name)
    return dict(sorted(found.items()))


def changed(recorded: Mapping[str, str]) -> list[str]:
    """The modules of a record whose code is another one today, or gone."""
    return [name for name, digest in recorded.items() if module_hash(name) != digest]


@cache
def module_hash(name: str) -> str:
    """16 hex digits of the module's normalised source; '' where there is no such file."""
    source = _source(name)
    return "" if source is None else hashlib.sha256(normalised(source).encode()).hexdigest()[:16]


@cache
def _source(name: str) -> str | None:
    path = ROOT.joinpath(*name.split(".")[1:])
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((f.read_text(encoding="utf-8") for f in files if f.is_file()), None)


@cache
def _imports(name: str) -> list[str]:
    """Modules and packages of fsd that a module names in an import, also inside a function."""
    found = []
    for node in ast.walk(ast.parse(_source(name) or "")):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith("fsd.")]


def normalised(source: str) -> str:
    """The tokens of a module without comments, docstrings and the breaking of lines.

    Taken from the text itself, so that all versions of Python give the same.
    """
    docstrings = _docstrings(ast.parse(source))
    lines = source.splitlines(keepends=True)
    out: list[str] = []
    start = None  # of an f-string, which newer versions of Python give in pieces
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            start = token.start if depth == 0 else start
            depth += 1
        elif kind == "FSTRING_END":
            depth -= 1
            if depth == 0:
                out.append(_between(lines, start, token.end))
        elif depth or token.type in _SILENT or token.start in docstrings:
            continue
        elif kind in ("INDENT", "DEDENT", "NEWLINE"):
            out.append({"INDENT": "{", "DEDENT": "}", "NEWLINE": ";"}[kind])
        elif token.string:
            out.append(token.string)
    return " ".join(out)


def _docstrings(tree: ast.Module) -> set[tuple[int, int]]:
    """Where docstrings begin: (line, column), as tokens count them."""
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = body[0] if body else None
            value = getattr(first, "value", None) if isinstance(first, ast.Expr) else None
            if isinstance(getattr(value, "value", None), str):
                found.add((first.lineno, first.col_offset))
    return found


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The source from one place to another."""
    (row, column), (last, stop) = start, end
    if row == last:
        return lines[row - 1][column:stop]
    return "".join([lines[row - 1][column:], *lines[row : last - 1], lines[last - 1][:stop]])
