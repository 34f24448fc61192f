"""The table of public data sets."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import replace

import pytest

from llm4dsr.data.sources.fetch import fetch
from llm4dsr.data.sources.known import known_sources
from llm4dsr.data.sources.read import FORMS
from llm4dsr.errors import ConfigError, DataError

DATA = gzip.compress(b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(5000)), mtime=0)
DATA += bytes(-len(DATA) % 4)  # gzip ends in any number of zeros; so the length can be halved twice


def test_every_known_source_can_be_read_by_a_known_form():
    known = known_sources()
    assert len({download.name for download in known}) == len(known)
    forms = {form.name: form for form in FORMS}
    for download in known:
        assert download.license
        assert download.homepage.startswith("https://")
        form = forms[download.form]
        for file in download.files:
            assert file.url.startswith("https://")
            assert file.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|https://\S+\.md5", file.checksum)
        if len(download.files) == 2:
            log, items = (file.name for file in download.files)
            first, second = re.fullmatch(form.log, log), re.fullmatch(form.items, items)
            assert first
            assert second
            assert first.groupdict() == second.groupdict()


def test_names_that_are_not_known(tmp_path):
    with pytest.raises(ConfigError, match=r"no data set 'movielens'. Known: movielens-100k, movielens-10m"):
        fetch("movielens", tmp_path, accept_license=True)
    with pytest.raises(
        DataError, match=r"yelp is given out by hand only: fill in the form at https://business.yelp.com"
    ):
        fetch("yelp", tmp_path, accept_license=True)


def test_sizes_for_people():
    known = {download.name: download for download in known_sources()}
    assert known["movielens-25m"].size_text == "262 MB"
    assert known["steam"].size_text == "not known"
    assert replace(known["steam"], files=()).size_text == "not known"
