"""The audit of a data set (fsd/data/audit/checks.py) for readers: sentences, table rows, a piece of the page.

Reads the manifest's entry `audit` and the pictures beside it; knows none of the checks.
"""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def section(manifest: Mapping[str, Any], pictures: Path | None = None) -> str:
    """HTML of the findings; with the pairs that leak, embedded, where their folder is given.

    Leave `pictures` out for a page that strangers may see: they show the data set's own images.
    """
    name = html.escape(str(manifest.get("name", "data")))
    if "audit" not in manifest:
        return f"<p>{name} was prepared without an audit.</p>"
    found = rows(manifest["audit"])
    if not found:
        return f"<p>{name}: the audit found nothing.</p>"
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in found
    )
    head = f"<th>{name}</th><th>finding</th><th>first</th>"
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return table + (_pairs(pictures) if pictures is not None else "")


def _pairs(folder: Path) -> str:
    """Every pair that the folder's index names, embedded."""
    try:
        index = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
        parts = []
        for pair in index:
            data = base64.b64encode((folder / pair["file"]).read_bytes()).decode()
            text = html.escape(" and ".join(pair["places"]))
            parts.append(
                f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
    except FileNotFoundError:  # nothing leaks, or they were removed
        return ""
    return "".join(parts)


def _examples(finding: Mapping[str, Any]) -> str:
    first = [" and ".join(places) for places in finding["first"][:EXAMPLES]]
    return "; ".join(first) + ("; …" if len(finding["first"]) > EXAMPLES else "")


def _findings(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(manifest.get("audit", {}).get("findings", []))
