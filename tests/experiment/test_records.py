"""The chain of a number: every link is held, and what is broken is said, never shown."""

import json
import shutil

import pytest
from made_up import write_run
from micro import micro, run

from fsd.experiment import records
from fsd.files import DamagedError, sha256, write_record


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A finished run and its teacher as the stages leave them, with every hash on record."""
    monkeypatch.chdir(tmp_path)
    params = micro()
    for one in (run("teacher"), run("cwd")):
        write_run(params, one, 0.5)
        (one.folder / "weights.pt").write_bytes(f"weights of {one.name}".encode())
        (one.folder / "detections.json").write_text("[]")
        made = json.loads((one.folder / "provenance.json").read_text())
        made |= {
            "weights_sha256": sha256(one.folder / "weights.pt"),
            "log_sha256": sha256(one.folder / "log.jsonl"),
        }
        made["data"]["content"] = "c0"
        if one.method != "teacher":
            made["teacher_sha256"] = sha256(run("teacher").folder / "weights.pt")
        metrics = json.loads((one.folder / "metrics.json").read_text()) | {
            "weights_sha256": made["weights_sha256"],
            "data_content": "c0",
            "detections_sha256": sha256(one.folder / "detections.json"),
        }
        write_record(one.folder / "provenance.json", made)
        write_record(one.folder / "metrics.json", metrics)
    return run("cwd")


def test_a_whole_chain_gives_the_numbers(whole):
    found = records.results(whole)
    assert found.metrics["ap"] == 0.5 and found.made["key"] == "cwd0" and len(found.log) == 4
    for name in ("weights.pt", "detections.json"):  # results may travel without them
        (whole.folder / name).unlink()
    assert records.results(whole).metrics["ap"] == 0.5


def changed(name, **entries):
    """A record with other entries, under a seal of its own: somebody else's, not a damaged one."""

    def change(one):
        path = one.folder / name
        content = json.loads(path.read_text())
        del content["record_sha256"]
        write_record(path, content | entries)

    return change


def written(name, data):
    return lambda one: (one.folder / name).write_bytes(data)


def copied(name, other):
    return lambda one: shutil.copy(run(other).folder / name, one.folder / name)


BROKEN = {
    "key": (changed("metrics.json", key="else"), "trained anew since it was evaluated"),
    "data": (changed("metrics.json", data="else"), "evaluated on other data"),
    "content": (changed("metrics.json", data_content="c1"), "other images or labels"),
    "measured weights": (
        changed("metrics.json", weights_sha256="0"),
        "metrics are of other weights",
    ),
    "weights": (written("weights.pt", b"weights of micro/cwd/1"), "weights.pt is not the file"),
    "another's weights": (copied("weights.pt", "teacher"), "weights.pt is not the file"),
    "detections": (written("detections.json", b"[ ]"), "detections.json is not the file"),
    "log": (written("log.jsonl", b'{"epoch": 1}\n'), "log.jsonl is not the training's"),
    "teacher": (changed("provenance.json", teacher_sha256="0"), "taught by other weights"),
    "no metrics": (written("metrics.json", b"{}"), "metrics.json is damaged"),
    "no provenance": (written("provenance.json", b""), "provenance.json is damaged"),
}


@pytest.mark.parametrize("link", BROKEN)
def test_a_broken_link_is_said_and_no_number_given(whole, link):
    change, says = BROKEN[link]
    change(whole)
    with pytest.raises(DamagedError, match=says):
        records.results(whole)


@pytest.mark.parametrize("name", ["metrics.json", "provenance.json"])
def test_an_edited_number_is_noticed(whole, name):
    path = whole.folder / name
    path.write_text(
        path.read_text().replace("0.5", "0.6").replace('"seconds": 3.0', '"seconds": 2.0')
    )
    with pytest.raises(DamagedError, match=rf"{name} was changed after it was written"):
        records.results(whole)


def test_what_is_missing_is_missing(whole):
    with pytest.raises(FileNotFoundError):
        records.results(run("fgd"))
    (whole.folder / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError):
        records.results(whole)


@pytest.mark.parametrize("text", [b'{"epoch": 1', b"3\n", b'{"loss": 1}\n', b"\xff\n"])
def test_a_cut_log_is_one_sentence(tmp_path, text):
    (tmp_path / "log.jsonl").write_bytes(b'{"epoch": 1}\n' + text)
    with pytest.raises(DamagedError, match=r"log\.jsonl is damaged"):
        records.read_log(tmp_path / "log.jsonl")
