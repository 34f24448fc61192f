"""Archives that would fill memory or disk are refused, before they do."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zipfile

import pytest

from llm4dsr.data.sources.unpack import unpack
from llm4dsr.errors import DataError


def tar_of(info: tarfile.TarInfo, zeros: int) -> bytes:
    """A packed tar with one member of so many zero bytes, written without holding them."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb") as packed:
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(zeros // 2**20):
            packed.write(bytes(2**20))
    return buffer.getvalue()


def sized(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def test_archives_that_unpack_to_many_times_their_size_are_refused(tmp_path):
    """In little memory, and without reading them to the end."""
    zip_bomb = io.BytesIO()
    with zipfile.ZipFile(zip_bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as member:
        for _ in range(128):
            member.write(bytes(2**20))
    bombs = {
        "a.zip": zip_bomb.getvalue(),
        "b.tar.gz": tar_of(sized("zeros", 2**40), 2**20),
        "c.tar.gz": tar_of(sized("x", 2**30, tarfile.GNUTYPE_LONGNAME), 2**25),
        "d.tar.gz": tar_of(sized("x", 2**30, tarfile.XHDTYPE), 2**25),
    }
    for name, body in bombs.items():
        (tmp_path / name).write_bytes(body)
        out = tmp_path / name[0]
        out.mkdir()
        tracemalloc.start()
        with pytest.raises(DataError, match=r"Do not trust this archive|damaged archive"):
            unpack(tmp_path / name, out)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
        tracemalloc.stop()
        assert not any(out.iterdir())


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llm4dsr.data.sources.unpack.MOST_FILES", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "abcd":
            archive.writestr(name, "")
    with pytest.raises(DataError, match="Do not trust this archive"):
        unpack(tmp_path / "a.zip", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
