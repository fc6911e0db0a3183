"""The likeliest mistakes: one sentence that says what to do, exit code 2, and nothing written."""

import errno
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from deploy_cases import write_images, write_weights
from places import ROOT

from fsd import cli


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pt")


@pytest.fixture
def here(tmp_path, monkeypatch, weights):
    """A repository's root with nothing but params.yaml, and some files that one may point at."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(weights, tmp_path / "w.pt")
    Path("notes.txt").write_text("no picture, no weights\n", encoding="utf-8")
    write_images(tmp_path / "photos", count=1)
    (tmp_path / "none").mkdir()
    return tmp_path


def typed(monkeypatch, capsys, line: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    monkeypatch.setattr(sys, "argv", ["fsd", *line.split()])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    return caught.value.code, said.out + said.err


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(monkeypatch, capsys, line: str) -> str:
    """The sentence with which a command ends."""
    before = files(Path.cwd())
    code, said = typed(monkeypatch, capsys, line)
    assert code == 2, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("fsd: ") and len(last) < 400, said
    assert files(Path.cwd()) == before
    return last


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("explain foo", "write DATASET/METHOD/SEED, as in figures/cwd/0"),
        ("explain figures/cwd/-1", "write DATASET/METHOD/SEED"),
        ("explain figurs/cwd/0", "did you mean 'figures'?"),
        ("doctor --experiment nope", "there is no experiment 'nope': valid names: .*smoke"),
        ("plan --experiment smok", "did you mean 'smoke'?"),
        ("show", "run `snakemake --cores all`"),
        ("report", "no run of smoke is finished: run `snakemake --cores all` first"),
        ("audit", "give --dataset NAME, or --format"),
        ("audit --dataset nope", "there is no data set 'nope'"),
        ("audit --dataset figures --format voc", "give --dataset alone"),
        ("audit --format voc --source /nowhere", "/nowhere does not exist"),
        ("audit --format vok --source photos", "vok is none of voc, coco, yolo"),
        ("audit --format yolo --source photos", "photos"),
        ("audit --format voc --source notes.txt", "neither a folder nor a tar nor a zip"),
        ("prepare --dataset figurs", "did you mean 'figures'?"),
        (
            "prepare --dataset fall_nano",
            r"data/raw/fall\.tar does not exist: put the data set there",
        ),
        ("teacher --dataset figures", "fsd prepare --dataset figures"),
        ("train --dataset figures --method cwd --seed 0", "fsd prepare --dataset figures"),
        ("train --dataset figures --method cwdd --seed 0", "did you mean 'cwd'?"),
        ("train --dataset figures --method cwd --seed -1", "seed is -1: take 0 or more"),
        ("train --dataset figures --method teacher --seed 1", "one run, seed 0"),
        ("evaluate --dataset figures --method cwd --seed 0", "is not trained"),
        ("predict w.pt nothing.jpg", r"no images match nothing\.jpg: correct"),
        ("predict w.pt none", "none holds no images or videos: choose another folder"),
        ("predict w.pt notes.txt", r"no picture can be read: notes\.txt"),
        ("predict nothing.pt photos", r"no weights file at nothing\.pt"),
        ("predict notes.txt photos", r"notes\.txt is not a weights\.pt"),
        ("predict nothing.onnx photos", r"no ONNX file at nothing\.onnx"),
        ("predict w.pt photos --out notes.txt", r"nothing can be written to notes\.txt"),
        ("export nothing.pt --format onnx", r"no weights file at nothing\.pt"),
        ("export notes.txt --format onnx", r"notes\.txt is not a weights\.pt"),
        ("export w.pt --format onnx --out a.txt", r"a\.txt should end in \.onnx"),
        ("export w.pt --format onnx --score 0.5", "add --nms"),
        ("export w.pt --format onnx --opset 3", "take 13 to 20"),
        ("export w.pt --format onnx --int8 static", "fsd prepare --dataset micro"),
        ("cost params.yaml", r"params\.yaml is not a weights\.pt"),
    ],
)
def test_a_mistake_in_a_command(here, monkeypatch, capsys, line, says):
    assert re.search(says, refused(monkeypatch, capsys, line))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("export w.pt --format foo", "'foo' is not one of 'onnx', 'mlflow'"),
        ("predict w.pt photos --score 7", "Invalid value for '--score'"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("train --dataset figures", "Missing option '--method'"),
        ("train --dataset figures --method cwd --seed one", "Invalid value for '--seed'"),
    ],
)
def test_what_the_command_line_itself_refuses(here, monkeypatch, capsys, line, says):
    before = files(here)
    code, said = typed(monkeypatch, capsys, line)
    assert code == 2 and says in " ".join(re.sub("[│|]", " ", said).split())
    assert files(here) == before


EDITS = {  # what becomes of params.yaml -> what is said of it
    "missing": (None, "run this from the repository's root folder"),
    "empty": ("", "should hold a mapping"),
    "text": ("hello", "should hold a mapping"),
    "no YAML": ("a: [1, 2\n", "not valid YAML in line 2"),
    "a tab": ("a:\n\tb: 1\n", "not valid YAML in line 2"),
    "a key twice": ("a: 1\na: 2\n", "key 'a' is given twice"),
    "unknown key": (
        ("    seeds: [0]", "    sedes: [0]"),
        "unknown key 'sedes': did you mean 'seeds'?",
    ),
    "wrong type": (("    seeds: [0]", "    seeds: zero"), "seeds should be a valid list"),
    "unknown method": (("[baseline, cwd, ", "[baseline, cwdd, "), "did you mean 'cwd'?"),
    "not text": (b"a: 1\xff\n", r"params\.yaml is no UTF-8 text \(byte 4\)"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("line", ["check", "train --dataset figures --method cwd --seed 0"])
def test_a_mistake_in_params_yaml(here, monkeypatch, capsys, line, edit):
    content, says = EDITS[edit]
    path = here / "params.yaml"
    if content is None:
        path.unlink()
    elif isinstance(content, tuple):
        text = path.read_text(encoding="utf-8")
        assert content[0] in text
        path.write_text(text.replace(*content, 1), encoding="utf-8")
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(says, refused(monkeypatch, capsys, line))


def test_outside_the_repository(here, monkeypatch, capsys):
    monkeypatch.chdir(here / "none")
    for line in ("check", "report", "doctor", "explain figures/cwd/0", "prepare --dataset figures"):
        assert "run this from the repository's root folder" in refused(monkeypatch, capsys, line)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "results/plan/.*: Permission denied: give yourself"),
        (errno.EROFS, "results/plan/.*: Read-only file system: work on a disk"),
        (errno.ENOSPC, "results/plan/.*: No space left on device: free some"),
    ],
)
def test_a_folder_that_takes_no_file(here, monkeypatch, capsys, number, says):
    def refuse(dir, **_):
        raise OSError(number, os.strerror(number), f"{dir}/.x")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert re.search(says, refused(monkeypatch, capsys, "plan"))
