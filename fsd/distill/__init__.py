"""Distillation methods: one file each, found by its name.

A method is the one public `Distiller` defined in `fsd/distill/<name>.py`; there is no register. Its
hyper-parameters are the keyword-only arguments of its constructor, none of which has a default, so
every number that shapes a result stands in params.yaml. See docs/methods.md for the formulas.
"""

import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from fsd.distill.base import Distiller

# Keys of a methods entry that are for the training loop.
NOT_HYPERPARAMETERS = ("distill", "site", "teacher", "epochs_factor")
SITES = ("stems", "neck")


def names() -> list[str]:
    """Every method there is, in alphabetical order."""
    return [name for name in _files() if _distillers(name)]


def load(name: str) -> type[Distiller]:
    """The class of a method; ValueError where there is no such method."""
    if name not in _files() or not _distillers(name):
        raise ValueError(f"there is no distillation method {name!r}; {_nearest(name, names())}")
    return _distillers(name)[0]


def hyperparameters(name: str) -> dict[str, Any]:
    """Name and type annotation of each hyper-parameter of a method, in the order it lists them."""
    parameters = inspect.signature(load(name).__init__, eval_str=True).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def check(config: Mapping[str, Any]) -> None:
    """Raise ValueError with one sentence where `build` would refuse the entry, whatever the channels."""
    if "distill" not in config:
        raise ValueError(
            "a methods entry needs the key 'distill', which names its file in fsd/distill"
        )
    name = config["distill"]
    if not isinstance(name, str):
        raise ValueError(f"'distill' must name a method, not be {name!r}")
    known = hyperparameters(name)
    if config.get("site", SITES[0]) not in SITES:
        raise ValueError(f"{name}: site must be one of {', '.join(SITES)}, not {config['site']!r}")
    for key in config:
        if key not in known and key not in NOT_HYPERPARAMETERS:
            hint = _nearest(str(key), list(known)) if known else "it takes none"
            raise ValueError(f"{name} has no hyper-parameter {key!r}; {hint}")
    for key, annotation in known.items():
        if key not in config:
            near = difflib.get_close_matches(key, [str(k) for k in config], 1)
            hint = f" (is {near[0]!r} meant?)" if near else ""
            raise ValueError(f"{name} needs the hyper-parameter {key!r}{hint}; none has a default")
        if not _fits(config[key], annotation):
            wanted = _words(annotation)
            raise ValueError(f"{name}: {key} must be {wanted}, not {config[key]!r}")
    teacher = config.get("teacher", "trained")
    if teacher != "trained" and not load(name).needs_teacher:
        raise ValueError(f"{name} has no teacher: remove 'teacher: {teacher}'")
    with torch.random.fork_rng(devices=[]):  # the constructor knows the ranges
        load(name)([2], [4], **_hyper(config))


def build(
    config: Mapping[str, Any], student_channels: Sequence[int], teacher_channels: Sequence[int]
) -> Distiller:
    """The distiller of a methods entry of params.yaml, for those channel counts (one per level).

    ValueError, in one sentence, where the entry is wrong.
    """
    check(config)
    return load(config["distill"])(student_channels, teacher_channels, **_hyper(config))


def _hyper(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in NOT_HYPERPARAMETERS}


def _files() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


@cache
def _distillers(name: str) -> list[type[Distiller]]:
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Distiller)
        and value is not Distiller
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(found) > 1:
        raise TypeError(
            f"{module.__name__} holds {len(found)} public distillers; one file, one method"
        )
    return found


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"is {near[0]!r} meant?" if near else f"there are {', '.join(known)}"


def _fits(value: object, annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Literal:
        return any(type(value) is type(a) and value == a for a in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in typing.get_args(annotation))
    if annotation is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _words(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    return words.get(annotation, str(annotation))
