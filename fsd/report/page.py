"""One self-contained HTML page: no server, no network, readable on a phone, in light and in dark."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

# What the page may load: nothing but what is written in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --good: #1a7f37; --bad: #c02626; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 86rem; margin: 0 auto; padding: 1rem;
  background: Canvas; color: CanvasText; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 2.2rem; font-size: 1.3rem; }
h3 { font-size: 1.05rem; margin-bottom: .4rem; }
nav a { margin-right: 1rem; white-space: nowrap; color: LinkText; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap;
  font-size: .93rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { vertical-align: bottom; } th.l, td.l { text-align: left; }
.wrap { white-space: normal; min-width: 11rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid LinkText; outline-offset: 2px; }
th button::after { content: " ↕"; opacity: .35; }
th[aria-sort=ascending] button::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: " ↓"; opacity: 1; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.unsure { opacity: .8; }
.plots { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
.plots figure { margin: 0; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
svg { width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
img { max-width: 100%; height: auto; } 
.grid td { padding: .15rem 0 .15rem .5rem; } .grid th { vertical-align: middle; padding-left: 0; }
.grid th, .sortable td:first-child, .sortable th:first-child { position: sticky; left: 0;
  background: Canvas; }
.grid img { display: block; max-width: none; height: 9.5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: .5rem 0;
  list-style: none; font-size: .9rem; }
.legend i { display: inline-block; width: 1.9em; margin-right: .4em; vertical-align: .25em; }
.confusion td { background: rgb(31 119 180 / calc(var(--share) * 80%)); min-width: 3.4rem; }
.audit { display: flex; flex-wrap: wrap; gap: 1rem; } .audit .scroll { flex: 0 0 100%; }
.audit figure { margin: 0; max-width: 22rem; } .audit td, .audit th { text-align: left; }
.list { padding-left: 1.2rem; } .list li { margin: .25rem 0; }
.checks { list-style: none; padding: 0; } .checks li { padding-left: 1.6rem; text-indent: -1.6rem; }
.checks b { display: inline-block; width: 1.6rem; text-indent: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
dt { font-weight: 600; margin-top: .9rem; } dd { margin: .1rem 0 .1rem 1rem; }
.small { font-size: .88rem; }
@media (max-width: 480px) { body { padding: .7rem; } th, td { padding: .3rem .5rem; }
  .grid img { height: 7.5rem; } }
"""

# A click on a header sorts the table by it: numbers by value, empty cells last.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.closest("th"), up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.key;
    const compare = (a, b) => head.dataset.kind === "number" ? a - b : a.localeCompare(b);
    [...table.tBodies[0].rows].sort((one, two) => {
      const a = key(one), b = key(two);
      if (a === "" || b === "") return (a === "") - (b === "");
      return up ? compare(a, b) : compare(b, a);
    }).forEach(row => table.tBodies[0].append(row));
  }));
}
"""


def escape(value: object) -> str:
    return html.escape(str(value))


def embedded(path: Path, height: int = 200) -> str:
    """A JPEG file as a data: address, made smaller where it is higher than so many pixels."""
    data = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image.shape[0] > height:
        size = (round(image.shape[1] * height / image.shape[0]), height)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def table(head: Iterable[object], rows: Iterable[Iterable[object]], left: int = 1) -> str:
    """A plain table; the first `left` columns hold words."""

    def cells(values: Iterable[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=l' if i < left else ''}>{escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def plots(drawn: dict[str, str | None]) -> str:
    """Caption -> SVG, side by side where there is room; those that are None are left out."""
    figures = "".join(
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, svg in drawn.items()
        if svg
    )
    return f'<div class="plots">{figures}</div>' if figures else ""


def page(title: str, sections: dict[str, str]) -> str:
    """The whole text; sections: heading -> HTML, empty ones are left out."""
    sections = {heading: body for heading, body in sections.items() if body}
    places = {heading: "".join(filter(str.isalnum, heading.lower())) for heading in sections}
    links = "".join(f'<a href="#{places[h]}">{escape(h)}</a> ' for h in sections)
    body = "".join(
        f'<section id="{places[heading]}"><h2>{escape(heading)}</h2>{text}</section>'
        for heading, text in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{body}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
