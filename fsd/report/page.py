"""One self-contained HTML page: no server, no network."""

import base64
import html
from pathlib import Path

import pandas as pd

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8884; text-align: right; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
img { max-width: 100%; height: auto; background: white; }
.strip img { max-width: none; height: 14rem; }
li { margin: .2rem 0; }
"""


def _embed(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def page(
    title: str,
    display: pd.DataFrame,
    notes: list[str],
    plots: dict[str, bytes],
    previews: dict[str, Path],
    made: dict[str, object],
) -> str:
    """HTML text. plots: heading -> PNG; previews: heading -> JPEG file of detections."""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in display.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>"
        for row in display.itertuples(index=False)
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>",
    ]
    for heading, png in plots.items():
        text = html.escape(heading)
        parts.append(f'<h2>{text}</h2><img alt="{text}" src="{_embed(png, "png")}">')
    if previews:
        parts.append(
            "<h2>Detections on test images</h2><p>Thin white: ground truth. Thick: detections with "
            "score 0.3 or more, of the first seed.</p>"
        )
    for heading, path in previews.items():
        text = html.escape(heading)
        image = _embed(path.read_bytes(), "jpeg")
        parts.append(
            f'<h3>{text}</h3><div class="scroll strip"><img alt="{text}" src="{image}"></div>'
        )
    facts = "".join(
        f"<li>{html.escape(k)}: {html.escape(str(v))}</li>" for k, v in made.items() if v
    )
    parts.append(f"<h2>Provenance</h2><ul>{facts}</ul>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
