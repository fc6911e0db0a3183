"""Names that are markup, formulas or commands come out as text, wherever the report shows them."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import cv2
import made_up
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import write_manifest, write_paper, write_run
from markdown_it import MarkdownIt
from micro import micro

from fsd import files
from fsd.experiment import runs
from fsd.experiment.schema import Experiment
from fsd.report import charts, render, stage

SCRIPT, FORMULA, CELLS = "<script>alert(1)</script>", "=1+1", "R&D | x"
QUOTED = "\" onload='alert(1)' `id` $x$"
HOSTILE = [SCRIPT, FORMULA, CELLS, QUOTED]
CHOSEN = Experiment(
    name="trial",
    datasets=[SCRIPT, QUOTED],
    methods=["baseline", *HOSTILE],
    seeds=[0, 1],
    reference=CELLS,
    meaning={SCRIPT: f"nothing,\n\n{CELLS}"},
)
FINDING = {"check": "classes", "splits": ["test"], "count": 1, "leak": True}
FINDING |= {"text": f"test has no box of {', '.join(HOSTILE)}", "first": [[SCRIPT, CELLS]]}
GFM = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class Page(HTMLParser):
    """What a browser makes of a page: its elements, their attributes, its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Ending -> text of a report whose classes, methods, data set and images have such names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("hostile"))
        patch.setattr(stage.tracking, "_off", ["tests"])
        patch.setattr(made_up, "CLASSES", HOSTILE)
        params = micro()
        params.datasets.update(dict.fromkeys(CHOSEN.datasets, params.datasets["micro"]))
        params.methods.update(dict.fromkeys(HOSTILE, params.methods["cwd"]))
        write_paper([])
        for dataset in CHOSEN.datasets:
            write_manifest(dataset, audit={"version": 1, "splits": {}, "findings": [FINDING]})
            pairs = runs.audit_folder(dataset)
            pairs.mkdir(parents=True)
            cv2.imwrite(str(pairs / "pair.jpg"), np.zeros((8, 8, 3), np.uint8))
            index = [{"file": "pair.jpg", "places": [SCRIPT, QUOTED]}]
            (pairs / "pairs.json").write_text(files.to_json(index))
        for i, run in enumerate(runs.runs(CHOSEN)):
            write_run(params, run, 0.5 + i / 1000, device=SCRIPT)
            path = run.folder / "metrics.json"
            content = json.loads(path.read_text())
            content["confusion"]["counts"] = np.arange(25).reshape(5, 5).tolist()
            path.write_text(files.to_json(content))
        stage.report(params, CHOSEN, f"fsd report {SCRIPT}")
        texts = {
            ending: runs.table_path("trial", ending).read_text(encoding="utf-8")
            for ending in ("md", "tex", "csv")
        }
        page = runs.page_path("trial").read_text(encoding="utf-8")
        pair = base64.b64encode((runs.audit_folder(SCRIPT) / "pair.jpg").read_bytes()).decode()
        yield texts | {"html": page, "records": stage.read_table("trial"), "pair": pair}


def test_on_the_page_they_are_text(written):
    page = Page(written["html"])
    assert page.tags.count("script") == 1  # the page's own
    assert set(page.tags) >= {"svg", "img", "table"}
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or "alert" in name]
    for name in HOSTILE:
        assert page.texts.count(name) > 10  # in tables, legends, plots, confusions
    assert any(FINDING["text"] in text for text in page.texts)
    assert f"{SCRIPT} and {QUOTED}" in page.values("alt")
    assert f"{SCRIPT}: {QUOTED}, attention" in page.values("alt")
    for dataset in CHOSEN.datasets:
        assert f"{dataset}: differences to the baseline" in page.values("aria-label")
    assert SCRIPT in page.values("data-key") and QUOTED in page.values("data-key")
    assert all(re.fullmatch(r"[\w.-]+", value) for value in page.values("id"))
    pictures = [value.removeprefix("data:image/jpeg;base64,") for value in page.values("src")]
    assert len(pictures) == page.tags.count("img") and written["pair"] in pictures


def test_in_a_plot_they_are_text():
    def draw(axis) -> None:
        axis.set_yticks(range(4), HOSTILE)
        axis.set_title(QUOTED + "&amp;")

    found = Page(charts.svg(draw, QUOTED + SCRIPT))
    assert set(found.texts) >= {*HOSTILE, QUOTED + "&amp;"}
    assert found.values("aria-label") == [QUOTED + SCRIPT]
    assert "script" not in found.tags and not found.values("onload")


def cells_of(markdown: str) -> list[list[str]]:
    """Rows of all tables, as a browser shows them."""
    page = GFM.render(markdown)
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [
        ["".join(Page(cell).texts) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_in_markdown_they_are_text(written):
    rows = cells_of(written["md"])
    assert {(row[0], row[1]) for row in rows} >= {
        (dataset, method) for dataset in CHOSEN.datasets for method in HOSTILE
    }
    assert len({len(row) for row in rows}) == 2  # one per table
    assert f"Δ AP to {CELLS} [95 % CI]" in rows[0]
    page = Page(GFM.render(written["md"]))
    assert set(page.tags) <= {"h1", "h2", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert any(FINDING["text"] in text for text in page.texts)
    assert f"What {SCRIPT} would mean: nothing, {CELLS}" in page.texts


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("ab1 \\`*_|<>~$&;#[](){}!/\"'\n\r\t=+-")))
@example("_a_ __b__ *c* `d` ~~e~~ [f](g) ![h](i) <http://j> &lt; &#60; k\\|l")
@example("-__a__-")
def test_any_text_in_markdown_is_shown_as_it_stands(text):
    table = f"| a | b |\n| - | - |\n| x{render.markdown_text(text)}x | y |"
    shown = "x" + "".join(c if c.isprintable() else " " for c in text) + "x"
    html = GFM.render(table)
    (cell,) = re.findall(r"<td>(.*?)</td>\n<td>y</td>", html, re.DOTALL)
    assert "<" not in cell
    assert Page(cell).texts == [" ".join(shown.split())]
    (line,) = re.findall(r"<li>(.*)</li>", GFM.render(f"- Said: {render.markdown_text(text)}x"))
    assert "<" not in line


def test_what_github_shows_as_it_stands_is_left_alone():
    for text in ("<0.001", "P(Δ > 0)", "IoU ≥ 0.5", "fsd_no_fg", "+1.0 [-0.2, +2.2]", "R&D", "a-b"):
        assert render.markdown_text(text) == text


def test_in_latex_they_are_text(written):
    text = written["tex"]
    assert r"$<$script$>$alert(1)$<$/script$>$ & R\&D $|$ x &" in text
    assert r"\textasciigrave{}id\textasciigrave{} \$x\$ &" in text
    assert r"nothing,  R\&D $|$ x" in text  # no paragraph within an item
    assert not re.search(r"(?<!\\)[#_`]|[<>|](?!\$)", text.split("\n", 1)[1].replace("\\label", ""))


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(max_codepoint=126)))
@example("a\n\nb")
@example("?`!`--,,''")
def test_latex_leaves_no_special_character(text):
    out = render.latex_text(text)
    assert out.isprintable() and not re.search(r"--|''|,,|`", out)
    for command in ("textasciitilde{}", "textasciicircum{}", "textbackslash{}", "textasciigrave{}"):
        out = out.replace(f"\\{command}", "")
    out = re.sub(r"\\[&%$#_{}]|\$[<>|]\$|\{[\[\]]\}|\\/", "", out)
    assert not set(out) & set("&%$#_{}~^\\[]`")


def test_a_spreadsheet_executes_none_and_numbers_stay_numbers(written):
    table = pd.read_csv(io.StringIO(written["csv"]))
    assert set(table.method) >= {f"'{FORMULA}", SCRIPT, CELLS, QUOTED}
    assert pd.api.types.is_float_dtype(table.delta_ap) and (table.delta_ap < 1).any()
    records = written["records"]
    assert [(one["dataset"], one["method"]) for one in records] == [
        (dataset, method) for dataset in CHOSEN.datasets for method in ("teacher", *CHOSEN.methods)
    ]


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("ab'=+-@\t\r\n ,\"")))
@example("'=1+1")
@example("x\r=1+1")
def test_no_cell_begins_as_a_formula_and_all_are_read_back(text):
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow([files.to_cell(text), files.to_cell(-0.5)])
    ((cell, number),) = csv.reader(io.StringIO(written.getvalue(), newline=""))
    assert cell[:1] not in tuple("=+-@\t\r\n")
    assert files.from_cell(cell) == text.replace("\r", "\n")
    assert number == "-0.5"
