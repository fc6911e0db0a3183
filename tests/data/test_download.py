"""Fetching a public data set: from a server on this machine that breaks off, lies, or has nothing."""

import errno
import hashlib
import re
import shutil
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from source_files import one_sentence, voc_files, write_tar, xml
from specs import Spec, powerless, snapshot

from fsd.data import stage, store
from fsd.data.formats import download


class Server:
    """Files by name, and how it treats them."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.breaks = 0  # so many answers end in the middle of what is left
        self.ranges = True  # whether it honours them
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []  # file, range
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.server = server
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, told, *args):
        self.told = told
        super().__init__(*args)

    def do_GET(self):
        told, name = self.told, self.path[1:]
        wanted = self.headers.get("Range")
        told.asked.append((name, wanted))
        if told.status != 200 or name not in told.files:
            self.send_error(404 if told.status == 200 else told.status)
            return
        data, start = told.files[name], 0
        if wanted and told.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        rest = data[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if told.breaks:
            told.breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def release(server, tmp_path, monkeypatch):
    """Two archives of a small VOC release, on the server, and known by name and hash."""
    files = voc_files(a=xml(("cat", 1, 1, 4, 4)), b=xml(), c=xml(("dog", 2, 2, 5, 5)))
    files["ImageSets/Main/train.txt"], files["ImageSets/Main/test.txt"] = b"b\na\n", b"c\n"
    in_test = ("c.xml", "c.png", "test.txt")
    packed = [("trainval.tar", {}), ("test.tar", {})]
    for name, data in files.items():
        packed[name.endswith(in_test)][1][f"VOCdevkit/VOC2007/{name}"] = data
    wanted = []
    for name, content in packed:
        data = write_tar(tmp_path / name, content).read_bytes()
        server.files[name] = data
        url = f"{server.url}/{name}"
        wanted.append(download.Archive(url, name, hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(download, "archives", lambda dataset: wanted)
    return wanted


def fails(message, folder):
    with pytest.raises(ValueError, match=message) as error:
        download.fetch("voc2007", folder)
    return one_sentence(error)


def test_torchvision_knows_the_archives():
    found = download.archives("voc2007")
    names = [archive.name for archive in found]
    assert names == ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    for archive in found:
        assert archive.url.startswith("http") and archive.url.endswith(archive.name)
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)


def test_a_missing_source_is_fetched_and_read_without_unpacking(release, server, tmp_path):
    source, calls = tmp_path / "raw/VOCdevkit", []
    spec = Spec(source=str(source), splits={"train": "train", "test": "test"}, download="voc2007")
    stage.prepare("pets", spec, tmp_path / "data", workers=1, progress=lambda *c: calls.append(c))
    assert sorted(p.name for p in source.iterdir()) == ["test.tar", "trainval.tar"]
    assert sorted(p.name for p in source.parent.iterdir()) == [".VOCdevkit.lock", "VOCdevkit"]
    train = store.open_split(tmp_path / "data", "pets", "train")
    assert train.names == ("b.png", "a.png") and train.labels.tolist() == [0]
    np.testing.assert_array_equal(train.original_boxes, [[0, 0, 4, 4]])
    assert store.open_split(tmp_path / "data", "pets", "test").names == ("c.png",)
    assert {call[2] for call in calls} >= {"MB of trainval.tar", "MB of test.tar", "train", "test"}
    # Nothing is fetched or made twice.
    asked, before = list(server.asked), snapshot(tmp_path)
    stage.prepare("pets", spec, tmp_path / "data", workers=1)
    assert (server.asked, snapshot(tmp_path)) == (asked, before)
    # All images of both archives can be split anew.
    spec.splits, spec.ratios = {}, {"train": 0.7, "test": 0.3}
    stage.prepare("mixed", spec, tmp_path / "data", workers=1)
    assert len(store.open_split(tmp_path / "data", "mixed", "train")) == 2


def test_a_transfer_that_breaks_off_goes_on_where_it_was(release, server, tmp_path):
    server.breaks = 2
    download.fetch("voc2007", tmp_path / "voc")
    for archive in release:
        assert (tmp_path / "voc" / archive.name).read_bytes() == server.files[archive.name]
    size = len(server.files["trainval.tar"])
    ranges = [wanted for name, wanted in server.asked if name == "trainval.tar"]
    assert ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


def test_one_that_keeps_breaking_off_is_continued_by_the_next_call(release, server, tmp_path):
    server.breaks = 99
    said = fails(r"broke off 5 times, .* MB: the same command continues it", tmp_path / "voc")
    assert "trainval.tar" in said
    part = tmp_path / "voc/trainval.tar.part"
    have = part.stat().st_size
    assert 0.9 < have / len(server.files["trainval.tar"]) < 1
    assert [p.name for p in (tmp_path / "voc").iterdir()] == [part.name]
    server.breaks, server.asked = 0, []
    download.fetch("voc2007", tmp_path / "voc")
    assert server.asked == [("trainval.tar", f"bytes={have}-"), ("test.tar", None)]
    assert sorted(p.name for p in (tmp_path / "voc").iterdir()) == ["test.tar", "trainval.tar"]


def test_a_server_that_ignores_the_range_sends_all_anew(release, server, tmp_path):
    server.ranges, server.breaks = False, 1
    download.fetch("voc2007", tmp_path / "voc")
    for archive in release:
        assert (tmp_path / "voc" / archive.name).read_bytes() == server.files[archive.name]


def test_a_part_that_is_whole_needs_only_its_name(release, server, tmp_path):
    """As left by a process that was killed before it looked at the hash."""
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc/trainval.tar.part").write_bytes(server.files["trainval.tar"])
    download.fetch("voc2007", tmp_path / "voc")
    assert sorted(p.name for p in (tmp_path / "voc").iterdir()) == ["test.tar", "trainval.tar"]


@pytest.mark.parametrize("before", [b"", b"other bytes", b"x" * 99_999])
def test_a_wrong_hash_removes_the_file(release, server, tmp_path, before):
    folder = tmp_path / "voc"
    folder.mkdir()
    if before:
        (folder / "trainval.tar.part").write_bytes(before)
    else:
        server.files["trainval.tar"] = b"<html>please log in</html>"
    said = fails(r"has the md5 \w{32}, not \w{32}, and was removed", folder)
    assert f"put the file trainval.tar (md5 {release[0].md5}) from elsewhere into {folder}" in said
    assert not folder.exists()


@pytest.mark.parametrize("status", [404, 403, 503])
def test_what_a_server_refuses_is_to_be_put_there_by_hand(release, server, tmp_path, status):
    server.status = status
    folder = tmp_path / "raw/voc"
    said = fails(rf"trainval\.tar cannot be fetched \(HTTP {status} [\w ]+\): put the file", folder)
    assert release[0].md5 in said and str(folder) in said
    assert not folder.exists() and [p.name for p in folder.parent.iterdir()] == [".voc.lock"]


def test_without_a_network_one_puts_the_files_there(release, server, tmp_path):
    server.close()
    folder = tmp_path / "voc"
    said = fails(r"trainval\.tar cannot be reached \(.+\): try again, or put the file", folder)
    assert release[0].md5 in said and str(folder) in said
    assert not folder.exists()
    folder.mkdir()
    for archive in release:
        (folder / archive.name).write_bytes(server.files[archive.name])
    download.fetch("voc2007", folder)
    assert server.asked == []


def test_a_file_put_there_with_another_hash_is_told_of_and_kept(release, server, tmp_path):
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc/test.tar").write_bytes(b"half")
    fails(r"voc/test\.tar has the md5 \w+, not \w+: remove it", tmp_path / "voc")
    assert (tmp_path / "voc/test.tar").read_bytes() == b"half"


@pytest.mark.parametrize("mine", ["VOC2007/README", "trainval.zip"])
def test_what_the_user_has_there_is_left_alone(release, server, tmp_path, mine):
    place = tmp_path / "voc" / mine
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    (tmp_path / "voc.tar").write_bytes(b"mine")
    before = snapshot(tmp_path)
    download.fetch("voc2007", tmp_path / "voc")
    download.fetch("voc2007", tmp_path / "voc.tar")
    assert snapshot(tmp_path) == before and server.asked == []


def test_a_disk_that_is_too_small_is_told_before_the_transfer(release, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fails(r"no space left in .*voc \(0 MB needed, 0 MB free\): free some", tmp_path / "voc")
    assert not (tmp_path / "voc").exists()


def test_a_disk_that_fills_up_leaves_nothing_behind(release, tmp_path, monkeypatch):
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        return Full(file) if mode == "ab" else file

    monkeypatch.setattr(Path, "open", full)
    fails("no space left in .*voc .No space left on device.: free some", tmp_path / "voc")
    assert not (tmp_path / "voc").exists()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(release, server):
    # Not in pytest's folder: that is closed to all but its owner.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "voc"
        with powerless(Path(name)):
            fails("voc cannot be written to or read .*check its permissions", folder)
        download.fetch("voc2007", folder)
        asked = list(server.asked)
        with powerless(Path(name)):  # what is there needs no writing
            download.fetch("voc2007", folder)
        assert server.asked == asked


def test_two_processes_fetch_once(release, server, tmp_path):
    threads = [
        threading.Thread(target=download.fetch, args=("voc2007", tmp_path / "voc"))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.asked) == [("test.tar", None), ("trainval.tar", None)]
