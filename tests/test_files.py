"""Records and hashes: nothing is taken for what it is not."""

import os

import pytest

from fsd import files

CONTENT = {"ap": 0.25, "per_class": {"cat": {"ap": None}}, "names": ["a", "ß"], "nan": float("nan")}


def test_a_record_comes_back(tmp_path):
    files.write_record(tmp_path / "r.json", CONTENT)
    found = files.read_record(tmp_path / "r.json", ["ap"])
    assert files.to_json(found) == files.to_json(CONTENT)


@pytest.mark.parametrize("digit", range(0, 120, 7))
def test_a_record_with_one_changed_character_is_refused(tmp_path, digit):
    path = tmp_path / "r.json"
    files.write_record(path, CONTENT)
    text = path.read_text()
    at = digit % len(text)
    changed = text[:at] + ("7" if text[at] != "7" else "8") + text[at + 1 :]
    path.write_text(changed)
    try:
        found = files.read_record(path)
    except files.DamagedError as error:
        assert "r.json" in str(error)
    else:  # white space, or the name of the seal: no number is another one
        assert files.to_json({k: found[k] for k in CONTENT}) == files.to_json(CONTENT)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", '{"key": 1', "{}", "[" * 100_000])
def test_what_is_no_record_is_one_sentence_with_the_file(tmp_path, text):
    path = tmp_path / "provenance.json"
    path.write_text(text)
    with pytest.raises(files.DamagedError, match=r"provenance\.json is damaged"):
        files.read_record(path, ["key"])


def test_records_from_before_there_were_seals_pass(tmp_path):
    (tmp_path / "old.json").write_text('{"key": "abc"}')
    assert files.read_record(tmp_path / "old.json", ["key"]) == {"key": "abc"}


def test_content_is_held_to_its_hash(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    digest = files.sha256(path)
    assert files.read_verified(path, digest, "train again") == b"weights"
    path.write_bytes(b"weightz")
    with pytest.raises(
        files.DamagedError, match=r"not the file that its record names.*train again"
    ):
        files.read_verified(path, digest, "train again")


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "big"
    path.write_bytes(b"a" * 1000)
    first = files.remembered_sha256(path, tmp_path)
    counted = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda p: (counted.append(p), real(p))[1])
    assert files.remembered_sha256(path, tmp_path) == first and not counted
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time as before
    assert files.remembered_sha256(path, tmp_path) != first and len(counted) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"/x": 1}', '{"/x": [1]}'])
def test_a_damaged_memory_is_no_memory(tmp_path, text):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    (tmp_path / files.MEMORY).write_text(text)
    assert files.remembered_sha256(path, tmp_path) == files.sha256(path)


def test_a_folder_s_fingerprint_is_its_names_and_contents(tmp_path):
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", ".hidden"):
        (folder / name).write_text(name)
    (folder / "sub/loop").symlink_to(folder)
    first = files.fingerprint(folder, tmp_path)
    assert files.fingerprint(folder, tmp_path) == first and len(first) == 16
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1, 1))
    (folder / ".hidden").write_text("else")
    assert files.fingerprint(folder, tmp_path) == first
    (folder / "sub/b.jpg").write_text("B")
    changed = files.fingerprint(folder, tmp_path)
    (folder / "sub/b.jpg").rename(folder / "sub/c.jpg")
    assert len({first, changed, files.fingerprint(folder, tmp_path)}) == 3
    assert files.fingerprint(tmp_path / "nothing", tmp_path) is None


def test_a_file_s_fingerprint_is_its_content(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"1")
    first = files.fingerprint(tmp_path / "x.tar", tmp_path)
    (tmp_path / "y.tar").write_bytes(b"1")
    assert files.fingerprint(tmp_path / "y.tar", tmp_path) == first
    (tmp_path / "x.tar").write_bytes(b"2")
    assert files.fingerprint(tmp_path / "x.tar", tmp_path) != first
