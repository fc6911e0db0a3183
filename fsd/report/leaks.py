"""The audit of a data set (fsd/data/audit/checks.py) for readers: sentences, table rows, a part of the page.

Reads the manifest's entry `audit` and the pictures beside it; knows none of the checks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

EXAMPLES = 3  # named in a table


def footnotes(manifest: Mapping[str, Any]) -> list[str]:
    """One sentence per finding, leaks first and named as such; none where there is no audit."""
    found = sorted(_findings(manifest), key=lambda one: not one["leak"])
    name = manifest.get("name", "data")
    return [
        f"WARNING: {name}: {one['text']} (leak between splits; policy: report)."
        if one["leak"]
        else f"{name}: {one['text']}."
        for one in found
    ]


def rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(kind, what, first examples) of every finding of an audit, leaks first."""
    found = sorted(result["findings"], key=lambda one: not one["leak"])
    return [("leak" if one["leak"] else "note", one["text"], _examples(one)) for one in found]


def table(name: str, result: Mapping[str, Any]) -> str:
    """Plain text for a terminal: the images, every finding, its first examples line by line."""
    images = ", ".join(f"{split} {count}" for split, count in result["splits"].items())
    lines = [f"{name}: {images} images"]
    for found in sorted(result["findings"], key=lambda one: not one["leak"]):
        kind = "LEAK" if found["leak"] else "note"
        lines.append(f"{kind}  {found['text']}")
        # Whoever mends a data set needs the whole list of what cannot be read.
        most = len(found["first"]) if found["check"] == "unreadable" else EXAMPLES
        lines += [f"      {' and '.join(places)}" for places in found["first"][:most]]
    leaks = sum(one["leak"] for one in result["findings"])
    kinds = "1 kind of leak" if leaks == 1 else f"{leaks} kinds of leaks"
    return "\n".join([*lines, f"{kinds if leaks else 'nothing leaks'} between the splits"])


class Pair(NamedTuple):
    """Two images side by side that leak."""

    text: str  # where they lie
    jpeg: bytes


class Audit(NamedTuple):
    """What the page shows of an audit."""

    dataset: str
    findings: list[tuple[str, str, str]] | None  # as of `rows`; None: prepared without an audit
    pairs: list[Pair]


def section(manifest: Mapping[str, Any], pictures: Path | None = None) -> Audit:
    """The findings; with the pairs that leak where their folder is given.

    Leave `pictures` out for a page that strangers may see: they show the data set's own images.
    """
    findings = rows(manifest["audit"]) if "audit" in manifest else None
    pairs = _pairs(pictures) if findings and pictures is not None else []
    return Audit(str(manifest.get("name", "data")), findings, pairs)


def _pairs(folder: Path) -> list[Pair]:
    """Every pair that the folder's index names."""
    try:
        index = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
        return [
            Pair(" and ".join(pair["places"]), (folder / pair["file"]).read_bytes())
            for pair in index
        ]
    except FileNotFoundError:  # nothing leaks, or they were removed
        return []


def _examples(finding: Mapping[str, Any]) -> str:
    first = [" and ".join(places) for places in finding["first"][:EXAMPLES]]
    return "; ".join(first) + ("; …" if len(finding["first"]) > EXAMPLES else "")


def _findings(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(manifest.get("audit", {}).get("findings", []))
