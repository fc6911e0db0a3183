"""params.yaml, read and checked. What it expands to stands in runs.py.

Read by the command line, the Snakefile and the tests; imports neither torch nor the methods, so that
a Snakefile parses fast. `distill.check` completes the check where torch is at hand.
"""

import re
import reprlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from fsd.experiment.schema import (
    Compute,
    Dataset,
    Experiment,
    Method,
    Name,
    Recipe,
    Strict,
    Verdict,
    nearest,
)

TEACHER = "teacher"  # reserved method: the teacher's own run, shared by all students of a data set


_SHORT = reprlib.Repr()  # YAML's aliases can make a value of ten lines as long as a book
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class ParamsError(ValueError):
    """params.yaml asks for something that does not exist or does not fit; the text says what."""


class Params(Strict):
    """The whole of params.yaml."""

    experiments: dict[Name, Experiment]
    active: Experiment
    recipes: dict[Name, Recipe]
    datasets: dict[Name, Dataset]
    methods: dict[Name, Method]
    verdict: Verdict
    compute: Compute = Compute()
    templates: dict[str, Any] = Field(default={})  # anchors for YAML's sharing; nothing reads it

    @model_validator(mode="after")
    def _look_ups(self) -> "Params":
        files = distillers()
        for name, method in self.methods.items():
            if name == TEACHER:
                raise ValueError("methods: 'teacher' is reserved for the teacher's own run")
            if method.distill not in files:
                raise ValueError(
                    f"methods.{name}.distill: there is no distiller '{method.distill}': "
                    f"{nearest(method.distill, files)}"
                )
        for name, dataset in self.datasets.items():
            if dataset.recipe not in self.recipes:
                raise ValueError(
                    f"datasets.{name}.recipe: there is no recipe '{dataset.recipe}': "
                    f"{nearest(dataset.recipe, self.recipes)}"
                )
        for name, experiment in [*self.experiments.items(), ("active", self.active)]:
            where = "active" if name == "active" else f"experiments.{name}"
            if name != "active" and experiment.name != name:
                raise ValueError(f"{where}.name is '{experiment.name}': write '{name}'")
            for key, known in (("datasets", self.datasets), ("methods", self.methods)):
                for value in getattr(experiment, key):
                    if value not in known:
                        raise ValueError(
                            f"{where}.{key}: '{value}' is not in {key}: {nearest(value, known)}"
                        )
        if self.experiments.get(self.active.name) != self.active:
            raise ValueError(
                "active: must be one of the experiments, as in 'active: *smoke': "
                f"{nearest(self.active.name, self.experiments)}"
            )
        return self


def distillers() -> list[str]:
    """Names of the files of fsd/distill/ that hold a Distiller, found without importing them."""
    folder = Path(__file__).parents[1] / "distill"
    holds = re.compile(r"^class \w+\(Distiller\):", re.MULTILINE)
    return sorted(
        p.stem
        for p in folder.glob("*.py")
        if p.stem not in ("__init__", "base") and holds.search(p.read_text(encoding="utf-8"))
    )


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ParamsError(f"key '{key}' is given twice (second time in line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # A merged mapping brings keys that the node overrides: legal, so they are looked for first.
        super().flatten_mapping(node)
        keys: dict[str, int] = {}
        for position, (key_node, _) in enumerate(node.value):
            keys[key_node.value] = position
        node.value = [pair for i, pair in enumerate(node.value) if keys[pair[0].value] == i]


# Only true and false are truth values, as in YAML 1.2: `off` is a word here.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [known for known in resolvers if known[0] != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file. ParamsError with one sentence where it is not right."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is not here: run this from the repository's root folder"
        ) from None
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path} is no UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ParamsError(f"{path}: not valid YAML{where}: {problem}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: should hold a mapping with experiments, datasets, methods, ...")
    return parse(raw, str(path))


def parse(raw: dict, name: str = "params.yaml") -> Params:
    """Check an already loaded mapping (the Snakefile's `config`, say)."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(f"{name}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        text = "is missing"
        return f"{where} {text}"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        return f"{where}: {text}" if where else text
    text = first["msg"].removeprefix("Input ")
    return f"{where} {text[0].lower() + text[1:]}, not {_SHORT.repr(first['input'])}"
