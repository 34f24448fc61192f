"""Downloads, against a local server with the faults that servers have."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from llm4dsr.data.sources import read_source
from llm4dsr.data.sources.fetch import fetch, license_notice
from llm4dsr.data.sources.known import Download, File
from llm4dsr.errors import ConfigError, DataError, OutputError

DATA = gzip.compress(b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(5000)), mtime=0)
DATA += bytes(-len(DATA) % 4)  # gzip ends in any number of zeros; so the length can be halved twice


class Server(http.server.ThreadingHTTPServer):
    """files: what lies where. faults: for a path, what to do wrong at the first, second, … request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.etag = '"1"'
        self.ranges: list[str | None] = []  # the Range header of each request

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path[1:]
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        body = self.server.files.get(name)
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if body is None or fault.isdecimal():
            return self.send_error(int(fault or 404))
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and fault != "ignores the range" else 0
        if self.headers.get("If-Range", self.server.etag) != self.server.etag:
            begin = 0
        if begin and begin >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        length = len(body) - begin
        length += {"says too much": 1000, "says too little": -1000}.get(fault, 0)
        if fault != "says nothing":
            self.send_header("Content-Length", str(length))
        if begin:
            first = begin + 7 if fault == "another place" else begin
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if "no version" not in fault:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        part = body[begin : begin + length]
        if fault.startswith("breaks off"):
            part = part[: len(part) // 2]
        if fault == "wrong bytes":
            part = part[:500] + bytes(1000) + part[1500:]
        self.wfile.write(part)
        return None


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def one_file(server: Server, name: str = "X.json.gz", body: bytes = DATA, **stated: object) -> Download:
    server.files[name] = body
    return Download("test", "table", "http://home.example", "Only for tests", (File(server.address(name), **stated),))


def get(download: Download, out: Path) -> list[Path]:
    return fetch(download, out, accept_license=True, wait=0.001)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []


MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


# --- when all goes well ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [MD5, SHA, None])
def test_a_file_with_its_checksum(server, tmp_path, checksum):
    seen = []
    (path,) = fetch(one_file(server, checksum=checksum, size=len(DATA)), tmp_path / "new", True,
                    lambda done, total, doing: seen.append((done, total, doing)))  # fmt: skip
    assert path.read_bytes() == DATA
    assert visible(tmp_path / "new") == ["X.json.gz", "checksums.json"]
    assert (len(DATA), len(DATA), "download X.json.gz") in seen
    entry = json.loads((tmp_path / "new" / "checksums.json").read_text())["X.json.gz"]
    assert entry == {
        "url": server.address("X.json.gz"),
        "bytes": len(DATA),
        "sha256": SHA[7:],
        "publisher states": checksum,
    }


def test_the_license_comes_first(server, tmp_path):
    download = one_file(server)
    assert "License: Only for tests." in license_notice(download)
    with pytest.raises(ConfigError, match=r"(?s)http://home.example.*Only for tests.*accept the license"):
        fetch(download, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert server.ranges == []


def test_what_is_there_is_not_fetched_again_unless_it_was_changed(server, tmp_path):
    download = one_file(server)
    get(download, tmp_path)
    get(download, tmp_path)
    assert len(server.ranges) == 1
    (tmp_path / "X.json.gz").write_bytes(DATA[:-1] + b"?")
    with pytest.raises(DataError, match=r"X.json.gz is not what was downloaded.*Delete the file"):
        get(download, tmp_path)
    (tmp_path / "X.json.gz").unlink()
    assert get(download, tmp_path)[0].read_bytes() == DATA


def test_a_file_that_was_put_there_by_hand_is_checked(server, tmp_path):
    (tmp_path / "X.json.gz").write_bytes(DATA)
    get(one_file(server, checksum=MD5), tmp_path)
    assert server.ranges == []
    (tmp_path / "Y.json.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match="wrong bytes: its md5 is"):
        get(one_file(server, "Y.json.gz", checksum=MD5), tmp_path)
    assert (tmp_path / "Y.json.gz").read_bytes() == b"something else"  # it is the user's


def test_a_checksum_file_beside_the_download(server, tmp_path):
    server.files["X.md5"] = f"MD5 (X.json.gz) = {MD5[4:].upper()}\n".encode()
    get(one_file(server, checksum=server.address("X.md5")), tmp_path)
    assert json.loads((tmp_path / "checksums.json").read_text())["X.json.gz"]["publisher states"] == MD5
    server.files["X.md5"] = b"<html>moved</html>"
    with pytest.raises(DataError, match="should state one checksum"):
        get(one_file(server, checksum=server.address("X.md5")), tmp_path / "again")


# --- when it does not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "stated", "starts"),
    [
        (["breaks off"], {}, [0, 1 / 2]),
        (["breaks off", "breaks off", "503", "429"], {}, [0, 1 / 2, 3 / 4, 3 / 4, 3 / 4]),
        (["breaks off", "ignores the range"], {}, [0, 1 / 2]),
        (["breaks off", "another place"], {}, [0, 1 / 2, 1 / 2]),
        (["breaks off, no version"], {}, [0, 0]),  # nobody could tell whether the rest belongs to it
        (["breaks off, no version"], {"checksum": MD5}, [0, 1 / 2]),
        (["500", "502"], {}, [0, 0, 0]),
        (["says too much"], {}, [0, 1]),
    ],
)
def test_it_goes_on_after_a_break(server, tmp_path, faults, stated, starts):
    server.faults["X.json.gz"] = list(faults)
    (path,) = get(one_file(server, **stated), tmp_path)
    assert path.read_bytes() == DATA
    assert server.ranges == [f"bytes={int(len(DATA) * start)}-" if start else None for start in starts]


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    download = one_file(server)
    server.faults["X.json.gz"] = ["breaks off", *["500"] * 5]
    with pytest.raises(
        DataError, match=rf"5 tries in a row .* after {len(DATA) // 2} bytes .*500.*Run the same command"
    ):
        get(download, tmp_path)
    assert visible(tmp_path) == []
    assert get(download, tmp_path)[0].read_bytes() == DATA
    assert server.ranges[-1] == f"bytes={len(DATA) // 2}-"


def test_the_rest_of_another_version_is_not_appended(server, tmp_path):
    download = one_file(server)
    server.faults["X.json.gz"] = ["breaks off", *["500"] * 5]
    with pytest.raises(DataError):
        get(download, tmp_path)
    server.files["X.json.gz"], server.etag = gzip.compress(b"new" * 9), '"2"'
    assert gzip.decompress(get(download, tmp_path)[0].read_bytes()) == b"new" * 9


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / ".X.json.gz.part").write_bytes(DATA + b"more")
    assert get(one_file(server, checksum=MD5), tmp_path)[0].read_bytes() == DATA
    assert server.ranges == [f"bytes={len(DATA) + 4}-", None]


@pytest.mark.parametrize(
    ("fault", "stated", "message"),
    [
        ("404", {}, "404 .*Look for the new address"),
        ("403", {}, "403 "),
        ("wrong bytes", {"checksum": MD5}, "wrong bytes: its md5 is [0-9a-f]{32}, the publisher states"),
        ("wrong bytes", {}, "wrong bytes: it is no whole gzip file"),
        ("says too little", {"checksum": SHA}, "wrong bytes: its sha256 is"),
        ("says too little", {}, "wrong bytes: it is no whole gzip file"),
        ("says too little", {"size": len(DATA)}, f"{len(DATA) - 1000} bytes, says the server; expected {len(DATA)}"),
        ("says nothing", {"size": 7}, "has [0-9]+ bytes, expected 7"),
    ],
)
def test_a_server_that_gives_something_else(server, tmp_path, fault, stated, message):
    server.faults["X.json.gz"] = [fault]
    with pytest.raises(DataError, match=message):
        get(one_file(server, **stated), tmp_path)
    assert visible(tmp_path) == []


def test_empty_files_and_web_pages_are_refused(server, tmp_path):
    with pytest.raises(DataError, match="it is empty"):
        get(one_file(server, "a.txt", b""), tmp_path)
    with pytest.raises(DataError, match="no whole gzip file"):
        get(one_file(server, "b.gz", b"<html>log in first</html>"), tmp_path)
    assert visible(tmp_path) == []


def test_a_server_that_does_not_answer(tmp_path, server):
    gone = one_file(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="5 tries in a row"):
        get(gone, tmp_path)


@pytest.mark.parametrize("url", ["ftp://a/b.gz", "file:///etc/passwd", "http://a/", "http://a/..", "http://a/.hidden"])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(ConfigError, match="no http or https address"):
        get(Download("x", "table", "", "", (File(url),)), tmp_path)


def test_a_folder_in_use_and_a_path_that_is_a_file(server, tmp_path):
    download = one_file(server)

    def again(done: int, total: int, doing: str) -> None:
        with pytest.raises(OutputError, match="Another download into"):
            get(download, tmp_path)
        seen.append(doing)

    seen: list[str] = []
    fetch(download, tmp_path, True, again)
    assert seen
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write into"):
        get(download, tmp_path / "file")


def test_a_damaged_record(server, tmp_path):
    (tmp_path / "checksums.json").write_text("{")
    with pytest.raises(DataError, match="Delete it: the files are then checked again"):
        get(one_file(server), tmp_path)


# --- archives --------------------------------------------------------------------------------------------------------


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return buffer.getvalue()


MOVIES = {
    "ml__ratings_dot_csv": "userId,movieId,rating,timestamp\n1,1,4.0,9\n",
    "ml__movies_dot_csv": "movieId,title,genres\n1,One (1999),Drama\n",
}


def test_an_archive_is_unpacked_and_can_be_read(server, tmp_path):
    download = one_file(server, "ml.zip", zipped(**MOVIES))
    get(download, tmp_path)
    assert visible(tmp_path) == ["checksums.json", "ml", "ml.zip"]
    found = read_source(tmp_path)
    assert [batch.rows() for batch in found.batches()] == [[(1, 1, datetime(1970, 1, 1, 0, 0, 9), 4.0)]]
    (tmp_path / "ml" / "movies.csv").write_text("")  # what was unpacked and is no longer whole comes back
    get(download, tmp_path)
    assert read_source(tmp_path).items.rows() == [(1, "One (1999)")]
    assert len(server.ranges) == 1


def tarred(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd", 4 if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(b"text"))
    return buffer.getvalue()


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def test_a_tar_archive(server, tmp_path):
    get(one_file(server, "a.tar.gz", tarred("folder/file.tsv")), tmp_path)
    assert (tmp_path / "folder" / "file.tsv").read_text() == "text"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.zip", zipped(**{"..__outside": "x"})),
        ("a.zip", zipped(**{"__outside": "x"})),
        ("a.zip", zipped(**{"C:outside": "x"})),
        ("a.zip", zip_link()),
        ("a.tar.gz", tarred("../outside")),
        ("a.tar.gz", tarred("/tmp/outside")),
        ("a.tar.gz", tarred("link", tarfile.SYMTYPE)),
        ("a.tar.gz", tarred("hard", tarfile.LNKTYPE)),
        ("a.tar.gz", tarred("device", tarfile.CHRTYPE)),
    ],
    ids=["backslashes", "slashes", "drive", "zip link", "parent", "absolute", "symlink", "hard link", "device"],
)
def test_archives_that_reach_outside_are_refused(server, tmp_path, name, body):
    with pytest.raises(DataError, match="Do not trust this archive"):
        get(one_file(server, name, body), tmp_path / "out")
    assert visible(tmp_path) == ["out"]
    assert visible(tmp_path / "out") == [name, "checksums.json"]


def test_damaged_archives_leave_nothing_unpacked(server, tmp_path):
    whole = zipped(a="text " * 500, b="more " * 500)
    broken = bytearray(whole)
    broken[45] ^= 0xFF
    for body in (bytes(broken), whole[:-30], b"no zip"):
        out = tmp_path / str(len(body))
        with pytest.raises(DataError, match="damaged archive"):
            get(one_file(server, "a.zip", body), out)
        assert visible(out) == ["a.zip", "checksums.json"]


def test_a_checksum_file_of_gigabytes_is_not_read(server, tmp_path):
    server.files["sum.md5"] = bytes(2**22)
    with pytest.raises(DataError, match=r"sum\.md5 .* more than"):
        get(one_file(server, checksum=server.address("sum.md5")), tmp_path)
    assert visible(tmp_path) == []
