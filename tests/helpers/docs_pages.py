"""The code of the pages: commands, snippets and what else they show; and what the commands meet."""

import json
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import cv2
from deploy_cases import write_images, write_video
from places import ROOT

from fsd.data.scenes.compose import scene

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURES = (
    "CONTRIBUTING.md",
    "concepts.md",
    "methods.md",
)  # their indented lines: diagrams, formulas
# A line that begins with one of these is a command.
PROGRAMS = (
    "fsd snakemake dvc make pip python torchrun mlflow printf curl git ssh tmux tar cp uv sbatch"
)
COMMAND = re.compile(rf"({'|'.join(PROGRAMS.split())}) .+|tmux")
VARIABLE = re.compile(r"[A-Z]+=\S+")
PYTHON = re.compile(r'from \w|import \w|\w+ = \w|"""')
YAML = re.compile(r"[a-z]\w*: ?")


class Block(NamedTuple):
    """Consecutive lines of code on a page."""

    page: str
    kind: str  # sh, python, yaml, picture or unknown
    text: str


def blocks(page: Path) -> list[Block]:
    """Its code, indented by four or fenced, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    code = re.compile(
        r"^```(?P<kind>\w*)\n(?P<fenced>(?:.*\n)*?)```|(?:^    .*\S.*\n(?:^\n(?=    ))?)+", re.M
    )
    for match in code.finditer(text):
        body = match["fenced"] or re.sub(r"^    ", "", match[0], flags=re.M)
        kind = match["kind"] or ("picture" if page.name in PICTURES else _kind(body.lstrip()))
        found.append(Block(page.name, kind, body))
    return found


def _kind(text: str) -> str:
    if COMMAND.match(text) or VARIABLE.match(text):
        return "sh"
    return "python" if PYTHON.match(text) else "yaml" if YAML.match(text) else "unknown"


def commands(page: Path) -> list[str]:
    """What a page tells to type, without comments: lines of its code, and between backticks.

    In running text `fsd train` is a name, and what ends in ... is cut short.
    """
    lines = [
        re.sub(r"\s+#.*", "", line).strip()
        for block in blocks(page)
        if block.kind == "sh"
        for line in block.text.splitlines()
    ]
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines += [
        code
        for code in re.findall(r"`([^`\n]+)`", prose)
        if COMMAND.fullmatch(code) and not re.fullmatch(r"fsd \S+|.* \.\.\.", code)
    ]
    return [line for line in lines if line and not VARIABLE.fullmatch(line)]


def variables(page: Path) -> list[str]:
    """The page's assignments, as W=path."""
    lines = [x for block in blocks(page) if block.kind == "sh" for x in block.text.splitlines()]
    return [line for line in lines if VARIABLE.fullmatch(line)]


def write_inputs(folder: Path) -> None:
    """What the pages take for granted: photos, a video, a YOLO folder that leaks, a clean VOC tar."""
    photos = write_images(folder / "photos", count=3)
    cv2.imwrite(str(folder / "photos/one.png"), cv2.imread(str(photos[0])))
    cv2.imwrite(str(folder / "photos/deep.jpg"), cv2.imread(str(photos[1])))
    write_video(folder / "walk.mp4")
    own = folder / "my_folder"
    for split, pictures in (("train", (0, 1, 2)), ("test", (2, 3))):
        for kind in ("images", "labels"):
            (own / kind / split).mkdir(parents=True)
        for index in pictures:
            image = scene(5, index, 160)[0]
            cv2.imwrite(str(own / f"images/{split}/{split}{index}.png"), image)
            label = own / f"labels/{split}/{split}{index}.txt"
            label.write_text(f"{index % 2} 0.5 0.5 0.3 0.4\n", encoding="utf-8")
    (own / "data.yaml").write_text(json.dumps({"names": ["up", "down"]}), encoding="utf-8")
    _write_voc(folder / "voc")
    with tarfile.open(folder / "mine.tar", "w") as tar:
        tar.add(folder / "voc", "voc")


def _write_voc(folder: Path) -> None:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, pictures in (("trainval", (0, 1)), ("test", (2, 3))):
        for index in pictures:
            cv2.imwrite(str(folder / f"JPEGImages/{index}.jpg"), scene(6, index, 96)[0])
            (folder / f"Annotations/{index}.xml").write_text(
                "<annotation><size><width>96</width><height>96</height></size>"
                f"<object><name>{'up' if index % 2 else 'down'}</name><difficult>0</difficult><bndbox>"
                "<xmin>10</xmin><ymin>10</ymin><xmax>60</xmax><ymax>80</ymax></bndbox></object>"
                "</annotation>",
                encoding="utf-8",
            )
        lines = "".join(f"{index}\n" for index in pictures)
        (folder / f"ImageSets/Main/{split}.txt").write_text(lines, encoding="utf-8")
