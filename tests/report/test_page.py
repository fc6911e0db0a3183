"""The report page: one file that needs nothing else, tried in a browser where one is at hand."""

import base64
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_up import write_manifest, write_paper, write_run
from micro import micro, run

from fsd import cli
from fsd.experiment import runs
from fsd.experiment.schema import Experiment
from fsd.report import charts, leaks, page, pictures, sections, stage
from fsd.report.collect import collect

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
CHOSEN = Experiment(
    name="trial", datasets=["micro"], methods=["baseline", "cwd", "fsd"], seeds=[0, 1, 2]
)
# The baseline's mean is written 2e-05: as text it would come after the others.
AP = {"teacher": [0.8], "baseline": [1e-5, 2e-5, 3e-5], "cwd": [0.5, 0.52, 0.51]}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder with a report of made-up runs; `fsd` has none, so its cells are empty."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stage.tracking, "_off", ["tests"])
        entry = {"dataset": "fall", "methods": ["cwd"], "unit": "fraction", "where": "here"}
        write_paper([entry | {"metric": "delta_ap", "value": 0.9}])
        write_manifest("micro")
        params = micro(datasets__micro__paper="fall")
        for method, values in AP.items():
            for seed, ap in enumerate(values):
                write_run(params, runs.Run("micro", method, seed), ap)
        stage.report(params, CHOSEN, "test")
        yield folder, params


def text_of(folder: Path) -> str:
    return (folder / runs.page_path("trial")).read_text(encoding="utf-8")


def test_the_page_has_every_part(written):
    text = text_of(written[0])
    headings = re.findall(r"<h2>([^<]*)</h2>", text)
    assert headings[0] == "Results" and len(headings) == 10
    assert text.count("<svg") == text.count("</svg>") == 5
    assert '<span class="bad">not reproduced</span>' in text
    assert "none &lt;named&gt;" in text  # of the ambiguities, escaped
    assert "✓" in text and "✗" in text
    assert ">baseline (n = 3)" in text.replace("micro: ", "")
    assert "<td>90</td>" in re.sub(r" style=\"[^\"]*\"", "", text)  # 3 x 30 of the confusion


def test_the_page_asks_for_nothing_outside_itself(written):
    text = text_of(written[0])
    places = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']([^"']*)""", text)
    assert places and all(place.startswith(("data:", "#")) for place in places)
    assert not re.search(r"url\((?!#)|@import|<script src|<iframe", text)
    policy = re.findall(r'"Content-Security-Policy" content="([^"]*)"', text)
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]


def test_without_photos_there_are_heat_maps_alone(written, monkeypatch):
    folder, params = written
    before = text_of(folder)
    shown = re.findall(r'alt="[^"]*, (preview|attention)"', before)
    assert shown and shown.count("preview") == shown.count("attention")
    monkeypatch.chdir(folder)
    stage.report(params, CHOSEN, "test", photos=False)
    after = text_of(folder)
    (folder / runs.page_path("trial")).write_text(before, encoding="utf-8")
    shown = re.findall(r'alt="([^"]*)"', after)
    assert shown and all(text.endswith(", attention") for text in shown)
    assert after.count("<img") == after.count("data:image") == len(shown)
    preview = base64.b64encode((folder / run("cwd").folder / "preview.jpg").read_bytes()).decode()
    assert preview in before and preview not in after


def test_the_command_hands_the_option_on(monkeypatch):
    asked = []
    monkeypatch.setattr(cli.stages, "load_params", lambda: micro())
    monkeypatch.setattr(stage, "report", lambda *arguments, **_: asked.append(arguments[-1]))
    for options in ([], ["--no-photos"]):
        monkeypatch.setattr("sys.argv", ["fsd", "report", *options])
        with pytest.raises(SystemExit) as caught:
            cli.app()
        assert caught.value.code == 0
    assert asked == [True, False]


def test_plots_take_the_colour_of_the_page(written):
    drawings = re.findall(r"<svg.*?</svg>", text_of(written[0]), re.DOTALL)
    assert all("currentColor" in drawing and charts.INK not in drawing for drawing in drawings)
    assert all('role="img" aria-label="' in drawing for drawing in drawings)
    identities = [name for drawing in drawings for name in re.findall(r'\bid="([^"]+)"', drawing)]
    clips = {name for drawing in drawings for name in re.findall(r"url\(#([^)]+)\)", drawing)}
    assert clips <= set(identities)
    assert all(identities.count(name) == 1 for name in clips)


def test_methods_are_told_apart_by_colour_and_line():
    names = ["baseline", *(f"m{i}" for i in range(len(charts.COLOURS) * len(charts.LINES)))]
    strokes = charts.strokes(names)
    assert len({(stroke.colour, stroke.line) for stroke in strokes.values()}) == len(names) + 1
    assert strokes["baseline"].colour == charts.INK  # the page's own text colour


def test_the_plots_and_the_attention_of_all_methods_are_files_too(written):
    place = written[0] / pictures.folder("trial")
    text = text_of(written[0])
    plots = sorted(place.glob("micro-*.svg"))
    assert [plot.stem for plot in plots] == [
        *("micro-ap", "micro-differences", "micro-distillation-loss-task-loss"),
        *("micro-precision-recall", "micro-task-loss-without-l1"),
    ]
    assert all(plot.read_text(encoding="utf-8") in text for plot in plots)
    grid = cv2.imread(str(place / "micro-attention.jpg"))
    assert grid.shape == (3 * (24 + 40), 320, 3)  # of teacher, baseline and cwd, under their names


def test_a_row_for_each_method_and_high_pictures_made_smaller(written, tmp_path):
    text = text_of(written[0])
    grids = re.findall(r'<table class="grid">(.*?)</table>', text, re.DOTALL)
    rows = [re.findall(r'<th class="l">([^<]*)</th>', grid) for grid in grids]
    assert rows == [["teacher", "baseline", "cwd"]] * 2  # detections, attention
    assert all(len(re.findall("<img", grid)) == 3 for grid in grids)
    cv2.imwrite(str(tmp_path / "high.jpg"), np.full((480, 960, 3), 90, np.uint8))
    data = pictures.lowered(tmp_path / "high.jpg", 120)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (120, 240, 3)


def test_a_long_list_of_missing_runs_is_folded():
    texts = ["AP is ...", *(f"Missing: {i}" for i in range(5))]
    assert sections.notes(texts) == (["AP is ..."], texts[1:])
    assert sections.notes(texts[:4]) == (texts[:4], [])
    macros = page.TEMPLATES.get_template("macros.html.j2").module
    folded = macros.notes(sections.notes(texts))
    assert folded.index("AP is") < folded.index("<details>") < folded.index("Missing: 0")
    assert "5 lines" in folded and folded.count("<li>") == 6
    assert "<details>" not in macros.notes(sections.notes(texts[:4]))


def test_a_method_that_stops_ends_its_line(monkeypatch):
    """norm_cwd is off in the last epochs: its loss of 0 is none, and has no place in a log plot."""
    seen = []
    monkeypatch.setattr(charts, "svg", lambda draw, name, *_: seen.append(draw) or "svg")
    curves = {"m0": [{1: 2.0, 2: 1.0, 3: 0.0}], "m1": [{1: 0.0, 2: 0.0, 3: 0.0}]}
    charts._curves(curves, "name", "distillation loss / task loss", charts.strokes(curves))
    axis = charts.plt.figure().subplots()
    seen[0](axis)
    (line,) = axis.lines
    np.testing.assert_array_equal(line.get_ydata(), [2, 1, np.nan])
    assert axis.get_yscale() == "log" and axis.yaxis.get_major_formatter()(0.5) == "0.5"
    charts.plt.close()


def test_the_curves_are_means_over_seeds_and_their_range(written, monkeypatch):
    folder, params = written
    monkeypatch.chdir(folder)
    finished, _ = collect(params, runs.runs(CHOSEN))
    drawn = []
    monkeypatch.setattr(charts, "_curves", lambda curves, *_: drawn.append(curves) or "svg")
    found = charts.learning_curves(finished, "micro", charts.strokes(CHOSEN.methods))
    assert list(found) == ["task loss without L1", "distillation loss / task loss"]  # no AP on val
    assert drawn[0]["teacher"] == [{epoch: 1 + 3 / epoch for epoch in range(1, 5)}]
    assert len(drawn[1]["cwd"]) == 3 and not any(drawn[1]["baseline"][0].values())
    first = [points[1] for points in drawn[1]["cwd"]]
    assert np.diff(first) == pytest.approx([0.1 * np.exp(-1 / 20)] * 2)


def test_the_page_says_where_there_is_nothing_to_show():
    audits = [leaks.Audit("clean", [], []), leaks.Audit("old", None, [])]
    text = page.page("title", [page.Section("The audit", "audits", audits)])
    assert "<p>clean: the audit found nothing.</p>" in text
    assert "<p>old was prepared without an audit.</p>" in text
    assert '<a href="#theaudit">The audit</a>' in text and '<section id="theaudit">' in text
    assert "<section" not in page.page("title", [page.Section("The audit", "audits", [])])


def test_every_cell_has_what_it_is_sorted_by(written):
    (table, *_) = re.findall(
        r'<table class="sortable">(.*?)</table>', text_of(written[0]), re.DOTALL
    )
    kinds = re.findall(r'data-kind="(\w+)"', table)
    assert set(kinds) == {"text", "number"}
    rows = [re.findall(r'<td[^>]* data-key="([^"]*)"', row) for row in table.split("</tr>")[1:-1]]
    assert [row[0] for row in rows] == ["teacher", "baseline", "cwd", "fsd"]
    for row in rows:
        for kind, key in zip(kinds, row, strict=True):
            assert kind == "text" or key == "" or math.isfinite(float(key))
    assert [row[3] for row in rows] == ["1", "3", "3", "0"]  # n: a value, not 1/1
    assert "2e-05" in rows[1]


# In the browser

PROBE = """<script>
const seen = {errors: []};
addEventListener("error", event => seen.errors.push(event.message));
addEventListener("securitypolicyviolation", event => seen.errors.push(event.blockedURI));
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const methods = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  const button = title => [...table.querySelectorAll("th button")]
    .find(one => one.textContent.startsWith(title));
  seen.start = methods();
  button("AP").click(); seen.falling = methods();
  seen.state = button("AP").closest("th").getAttribute("aria-sort");
  button("AP").click(); seen.rising = methods();
  button("method").click(); seen.names = methods();
  seen.requests = performance.getEntriesByType("resource").map(entry => entry.name);
  seen.width = innerWidth;
  seen.needed = document.documentElement.scrollWidth;
  seen.plots = [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width);
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""
# A frame has the width asked for; Chromium's own window is never narrower than 500 px.
FRAME = """<!doctype html><body style="margin: 0"><script>
addEventListener("message", event => { document.body.dataset.seen = event.data; });
</script><iframe src="page.html" style="border: 0; width: %dpx; height: 900px"></iframe>"""


@pytest.fixture(scope="module", params=[400, 1400])
def seen(request, written, tmp_path_factory):
    """What a script in a copy of the page saw at this width, and what the browser logged."""
    if not CHROMIUM:
        pytest.skip("no Chromium")
    folder = tmp_path_factory.mktemp("browser")
    text = text_of(written[0]).replace("<body>", f"<body>{PROBE}")
    (folder / "page.html").write_text(text, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME % request.param, encoding="utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1500,1000"),
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])) | {"logged": logged, "asked": request.param}


@pytest.mark.browser
def test_no_error_and_no_request(seen):
    assert seen["errors"] == seen["logged"] == seen["requests"] == []


@pytest.mark.browser
def test_a_click_on_a_header_sorts_by_value_and_leaves_empty_cells_last(seen):
    assert seen["start"] == ["teacher", "baseline", "cwd", "fsd"]
    assert seen["falling"] == ["teacher", "cwd", "baseline", "fsd"]
    assert seen["state"] == "descending"
    assert seen["rising"] == ["baseline", "cwd", "teacher", "fsd"]
    assert seen["names"] == ["teacher", "fsd", "cwd", "baseline"]


@pytest.mark.browser
def test_the_page_fits_the_screen(seen):
    assert seen["width"] == seen["asked"]
    assert seen["needed"] <= seen["width"]  # wide tables scroll by themselves
    assert all(300 < width <= 600 for width in seen["plots"])
