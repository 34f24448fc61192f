"""`with_items`: a denoiser that also knows new items, at once and without tuning, for every kind of model."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llm4dsr import Config, Denoiser
from llm4dsr.core.manifest import write_manifest
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError, ModelError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.title_vectors import WEIGHTS_FILE, TitleEncoder, fit_title_encoder

from .lm.test_model_sources import configured, fitted, make_checkpoint

NEW = pl.DataFrame({"item_id": [9001, 9002], "title": ["Wooden “Robot” Puzzle &amp; Book", "Zzyzx"]})
KINDS = {
    "embedded": ("embedded", "soft_token", "per_position", "full"),
    "soft tokens, one noisy title": ("embedded", "soft_token", "title", "full"),
    "titles": ("checkpoint", "title", "title", "full"),
    "titles by LoRA": ("checkpoint", "title", "per_position", "lora"),
    "soft tokens by LoRA": ("checkpoint", "soft_token", "per_position", "lora"),
    "GGUF": ("gguf", "title", "title", "lora"),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def denoiser(request, tmp_path_factory, tiny_demo) -> Denoiser:
    source, items, readout, tuning = request.param
    folder, titles = tmp_path_factory.mktemp("source"), tiny_demo.catalogue.titles
    if source == "gguf":
        pytest.importorskip("gguf")
        from .lm.test_gguf import write_gguf

        write_gguf(folder / "tiny.gguf", titles)
        source = folder / "tiny.gguf"
    elif source == "checkpoint":
        source = make_checkpoint(folder / "base", titles)
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 400}
    return fitted(configured(source, items, readout, tuning, **small), tiny_demo)


@pytest.fixture(scope="module")
def extended(denoiser) -> Denoiser:
    return denoiser.with_items(NEW)


def test_histories_without_a_new_item_keep_their_scores(denoiser, extended, tiny_demo):
    histories = tiny_demo.splits["test"].histories()
    before, after = denoiser.score(histories), extended.score(histories)
    assert before.equals(after)


def test_it_shares_all_weights_and_leaves_the_denoiser_as_it_was(denoiser, extended):
    assert len(extended.catalogue) == len(denoiser.catalogue) + 2
    for old, new in zip(denoiser.ensemble.models, extended.ensemble.models, strict=True):
        assert [p.data_ptr() for p in old.parameters()] == [p.data_ptr() for p in new.parameters()]
        assert old.vectors is None or len(old.vectors) == len(denoiser.catalogue)
        assert old._turn is new._turn  # an adapter is on or off for both
    assert extended.ensemble.fingerprint != denoiser.ensemble.fingerprint


def test_a_new_item_is_scored_at_once(denoiser, extended, tiny_demo):
    ids = tiny_demo.catalogue.ids[:4].to_list()
    with pytest.raises(DataError, match="9001"):
        denoiser.score([[*ids, 9001]])
    scores = extended.score([[*ids, 9001], [9001, 9002]])
    assert scores["log_odds"].is_finite().all()
    assert scores["item_id"].to_list() == [*ids, 9001, 9001, 9002]


def test_a_new_item_is_suggested_where_nothing_else_is_left(extended, tiny_demo):
    """A history of all old items and one of the two new ones: only the other is left."""
    history = [*tiny_demo.catalogue.ids.to_list(), 9002]
    flag = pl.DataFrame({"window_id": [0], "position": [3]})
    found = extended.suggest([history], flag).row(0, named=True)
    assert (found["suggested_item_id"], found["suggested_title"]) == (9001, NEW["title"][0])


def test_saved_and_loaded_it_still_knows_them_and_takes_more(extended, tmp_path, tiny_demo):
    extended.save_pretrained(tmp_path / "model")
    loaded = Denoiser.from_pretrained(tmp_path / "model")
    histories = [[*tiny_demo.catalogue.ids[:4].to_list(), 9001, 9002]]
    np.testing.assert_allclose(loaded.score(histories)["log_odds"], extended.score(histories)["log_odds"], atol=1e-5)
    again = loaded.with_items(pl.DataFrame({"item_id": [9003], "title": ["Another Puzzle"]}))
    assert again.score([[9003, 9001]])["log_odds"].is_finite().all()
    assert len(again.catalogue) == len(tiny_demo.catalogue) + 3


def test_the_same_items_twice_are_the_same(extended):
    same = extended.with_items(NEW.with_columns(pl.lit("Wooden “Robot” Puzzle  & Book").alias("title")).head(1))
    assert same.catalogue is extended.catalogue


# --- without a model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tiny_demo) -> Denoiser:
    config = configured("embedded", "soft_token", "per_position", "full", hidden_size=16, layers=1, heads=2)
    return fitted(config, tiny_demo)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({"item_id": [9001, 9001], "title": ["a", "b"]}, "must be unique"),
        ({"item_id": [9001], "title": [""]}, "no title"),
        ({"item_id": ["9001"], "title": ["a"]}, "type String; those of the catalogue are Int64"),
        ({"item_id": [9001]}, "'title' is missing"),
        ({"item_id": pl.Series([2**64 - 1], dtype=pl.UInt64), "title": ["a"]}, "out of the range"),
    ],
)
def test_items_that_cannot_be_used(small, items, said):
    with pytest.raises(DataError, match=said):
        small.with_items(pl.DataFrame(items))


def test_a_known_item_with_another_title_is_refused(small):
    known = small.catalogue.ids[0]
    with pytest.raises(DataError, match=f"item_id {known}: .* not 'Other'"):
        small.with_items(pl.DataFrame({"item_id": [known], "title": ["Other"]}))


def test_categories_are_kept(small):
    catalogue = small.catalogue.filter(np.ones(len(small.catalogue), dtype=bool))
    catalogue.categories = pl.Series("category", ["toys"] * len(catalogue))
    more = catalogue.extended(type(catalogue)(pl.Series("item_id", [9001]), ["a"]))
    assert more.categories.to_list() == ["toys"] * len(catalogue) + [None]


def test_a_new_item_sorts_and_counts_nothing_again(tiny_demo):
    """What is derived from the counts is shared: it equals what would be derived anew."""
    n, train = len(tiny_demo.catalogue), tiny_demo.splits["train"]
    counts = CooccurrenceCounts.fit(train, n, 0)
    grown = counts.with_items(n + 2)
    anew = CooccurrenceCounts(grown.pairs, grown.counts, grown.popularity, grown.own, grown.vectors)
    context = np.ones(len(train.items), dtype=bool)
    for one, other in zip(grown.neighbors(train, context), anew.neighbors(train, context), strict=True):
        np.testing.assert_array_equal(one, other)
    fresh = type(grown.vectors)(grown.vectors.vectors, grown.vectors.users)
    np.testing.assert_array_equal(grown.vectors.units, fresh.units)
    assert grown._own_prefixes is counts._own_prefixes


def test_counts_of_old_items_stay_and_new_ones_can_be_counted(tiny_demo):
    """Counting after the catalogue has grown is the same as counting with the larger catalogue from the beginning."""
    train, valid = tiny_demo.splits["train"], tiny_demo.splits["valid"]
    n = len(tiny_demo.catalogue)
    newer = Windows.from_lists([[n, n + 1, 3], [n + 1, n]], user_ids=pl.Series(["x", "y"]))
    grown = CooccurrenceCounts.of(train, n).with_items(n + 2).add(valid).add(newer)
    whole = CooccurrenceCounts.of(train, n + 2).add(valid).add(newer)
    assert grown.fingerprint == whole.fingerprint
    assert grown.popularity[n:].tolist() == [2, 2]
    pair_counts, _ = grown.leave_one_out_counts(Windows.from_lists([[n, n + 1]], user_ids=pl.Series(["x"])))
    assert pair_counts[0, 0, 1] == 1  # user y; x's own is left out


def test_titles_are_encoded_as_when_the_encoder_was_fitted(tmp_path, tiny_demo):
    titles, train = tiny_demo.catalogue.titles, tiny_demo.splits["train"]
    encoder, vectors = fit_title_encoder(titles, train, "catalogue", 16, 0)
    np.testing.assert_allclose(encoder(titles), vectors, atol=0.02)  # weights are kept with 16 bits
    assert np.linalg.norm(vectors, axis=1).min() > 5
    encoder.save(tmp_path)
    again = TitleEncoder.load(tmp_path, "catalogue")
    assert again.fingerprint == encoder.fingerprint
    assert np.array_equal(again(titles), encoder(titles))
    assert not encoder(["☃"]).any()  # no known word or part: nothing is known about it
    twin = encoder([titles[0].upper()])[0] @ encoder([titles[0]])[0]
    assert twin == pytest.approx(float(np.square(encoder([titles[0]])).sum()), rel=1e-5)


def test_titles_without_letters_are_encoded_too(tiny_demo):
    titles = ["☃☃", "☃★", "★", "✈"]
    windows = Windows.from_lists([[0, 1], [2, 3]])
    encoder, vectors = fit_title_encoder(titles, windows, "catalogue", 8, 0)
    np.testing.assert_allclose(encoder(titles), vectors, atol=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda w: w[:, :-1], "an encoder of titles with 39 columns for vectors with 40"),
     (lambda w: w[:-1], "title weights of shape"), (lambda w: w * np.nan, "not finite")],
)  # fmt: skip
def test_a_saved_encoder_that_does_not_fit_is_refused(small, tmp_path, change, said):
    small.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    save_file(weights | {"parts": np.ascontiguousarray(change(weights["parts"]))}, tmp_path / WEIGHTS_FILE)
    write_manifest(tmp_path)
    with pytest.raises(ModelError, match=said):
        Denoiser.from_pretrained(tmp_path)


def test_new_items_have_the_models_tokens(small):
    assert torch.equal(small.with_items(NEW).model.vectors[:-2], small.model.vectors)
    assert small.with_items(NEW).builder.no_noise == small.builder.no_noise + 2


def test_default_config_is_not_needed_to_add_items():
    with pytest.raises(ModelError, match="has not been fitted"):
        Denoiser(Config()).with_items(NEW)
