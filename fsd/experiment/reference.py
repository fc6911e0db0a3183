"""params.yaml described from its own model: a JSON schema for editors, a page for people.

The words are the docstrings and comments of schema.py, so there is one place to keep right. `fsd
reference` writes both; a test holds the committed files against it.
"""

import ast
import inspect
import io
import json
import tokenize
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fsd.experiment import schema
from fsd.experiment.params import Params

SCHEMA = Path("workflow/schemas/params.schema.json")
PAGE = Path("docs/params.md")
HEAD = """\
# params.yaml

Every number that shapes a result stands in `params.yaml`; Snakemake, DVC and `fsd` read it alone.
This page is made by `fsd reference` from `fsd/experiment/schema.py`, as is `{schema}`
for editors that know JSON schemas. Where no default is named, the key must be given.

`active` is one of the experiments (`active: *smoke`); `templates` holds anchors for YAML's own
sharing and is read by nothing.

Types: `Count` is a whole number from 1, `Positive` a number above 0, `NotNegative` one from 0,
`Probability` one in 0..1, `Name` small letters, digits and underscores, `SplitName` one of train,
val, test."""
BLOCKS = (  # in the order of params.yaml
    ("experiments.NAME", schema.Experiment),
    ("recipes.NAME", schema.Recipe),
    ("recipes.NAME.augment", schema.Augment),
    ("recipes.NAME.multiscale", schema.Multiscale),
    ("datasets.NAME", schema.Dataset),
    ("datasets.NAME.data", schema.Data),
    ("datasets.NAME.data.groups", schema.Groups),
    ("datasets.NAME.teacher and .student", schema.Network),
    ("datasets.NAME.teacher.train and .student.train", schema.Train),
    ("datasets.NAME.teacher.init and .student.init", schema.Init),
    ("datasets.NAME.evaluate", schema.Evaluate),
    ("datasets.NAME.teacher_gate", schema.TeacherGate),
    ("methods.NAME", schema.Method),
    ("verdict", schema.Verdict),
    ("compute", schema.Compute),
)


def write() -> list[Path]:
    """Write both files below the working directory; their paths."""
    for path, text in ((SCHEMA, json_schema()), (PAGE, page())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [SCHEMA, PAGE]


def json_schema() -> str:
    """JSON schema (draft 2020-12) of params.yaml, with the comments as descriptions."""
    content = Params.model_json_schema()
    for name, block in content["$defs"].items():
        _describe(block, getattr(schema, name))
    content["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    content["title"] = "params.yaml"
    return json.dumps(content, indent=1) + "\n"


def _describe(block: dict[str, Any], model: type[BaseModel]) -> None:
    for key, text in comments(model).items():
        if key in block["properties"] and text:
            block["properties"][key]["description"] = text


def page() -> str:
    """Markdown: every block of params.yaml with its keys, types, defaults and meaning."""
    out = [HEAD.format(schema=SCHEMA)]
    for path, model in BLOCKS:
        says = " ".join((inspect.getdoc(model) or "").split())
        out += ["", f"## `{path}`", "", says, "", "| key | type | default | meaning |"]
        out.append("| --- | --- | --- | --- |")
        for key, text in comments(model).items():
            field = model.model_fields[key]
            default = "" if field.is_required() else f"`{_plain(field.get_default())}`"
            kind = _type(model, key)
            out.append(f"| `{key}` | {kind} | {default} | {text} |".replace("|  |", "| |"))
        if model is schema.Method:
            out.append("| ... | | | the hyper-parameters of its class: docs/methods.md |")
    return "\n".join([*out, ""])


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump())
    return json.dumps(value)


def _type(model: type[BaseModel], key: str) -> str:
    """The annotation as it is written, for a table."""
    for node in ast.walk(ast.parse(inspect.getsource(model).lstrip())):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == key:
            text = ast.unparse(_WithoutField().visit(node.annotation))
            return "`" + text.replace("|", "or").replace("'", '"') + "`"
    raise KeyError(key)


class _WithoutField(ast.NodeTransformer):
    """Annotated[T, Field(...)] as T: bounds are told by the check itself."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        return node.slice.elts[0] if getattr(node.value, "id", "") == "Annotated" else node


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the comment on its line, or on the lines just above it."""
    source = inspect.getsource(model)
    said: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            said[line] = token.string.removeprefix("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(line)
    out = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign) or node.target.id not in model.model_fields:
            continue
        above, line = [], node.lineno - 1
        while line in alone:
            above.insert(0, said[line])
            line -= 1
        own = [said[i] for i in range(node.lineno, node.end_lineno + 1) if i in said]
        out[node.target.id] = " ".join(above + own)
    return out
