"""A saved denoiser says what it is, in a README.md that a model hub reads."""

from dataclasses import replace

import pytest
import yaml

from llm4dsr import Denoiser
from llm4dsr.denoise.model_card import model_card
from llm4dsr.errors import ModelError

from ..tiny_run import CONFIG


@pytest.fixture(scope="module")
def denoiser(tiny_demo) -> Denoiser:
    data = tiny_demo
    return Denoiser(CONFIG).fit(data.splits["train"], data.catalogue, data.splits["valid"].histories())


@pytest.fixture
def saved(denoiser, tmp_path):
    denoiser.save_pretrained(tmp_path / "denoiser")
    return tmp_path / "denoiser"


def front_matter(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_has_what_a_hub_reads(saved):
    text = (saved / "README.md").read_text(encoding="utf-8")
    head = front_matter(text)
    assert head["library_name"] == "llm4dsr"
    assert "sequential-recommendation" in head["tags"]
    assert "license" not in head  # for whoever publishes it
    assert "base_model" not in head


def test_the_card_says_what_was_learned_from(saved, denoiser, tiny_demo):
    text = (saved / "README.md").read_text(encoding="utf-8")
    train, valid = tiny_demo.splits["train"], tiny_demo.splits["valid"]
    assert f"| histories | {len(train):,} |" in text
    assert f"| interactions | {len(train.items):,} |" in text
    assert f"| validation histories | {len(valid)} |" in text
    assert f"| items | {len(tiny_demo.catalogue)} |" in text
    low, high = denoiser.calibrator.rate_low, denoiser.calibrator.rate_high
    assert f"| estimated noise rate | {low:.1%} to {high:.1%} |" in text
    assert Denoiser.from_pretrained(saved).learned_from == denoiser.learned_from


def test_a_license_may_be_added_but_weights_may_not_change(saved):
    card = saved / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("# license", "license: mit\n# license"), encoding="utf-8")
    assert front_matter(card.read_text(encoding="utf-8"))["license"] == "mit"
    Denoiser.from_pretrained(saved)
    card.unlink()
    Denoiser.from_pretrained(saved)
    (saved / "items.parquet").write_bytes(b"")
    with pytest.raises(ModelError, match="damaged"):
        Denoiser.from_pretrained(saved)


@pytest.mark.parametrize(
    ("source", "base", "text"),
    [
        ("org/small-model", "org/small-model", "| language model | org/small-model |"),
        ("/home/somebody/model", None, "| language model | a local model |"),
        ("smollm2", None, "| language model | smollm2 |"),
    ],
)
def test_a_base_model_is_named_but_no_path(denoiser, source, base, text):
    config = replace(CONFIG, model=replace(CONFIG.model, source=source))
    facts = {"curve": [], "width": 11, "calibrator": {"uncalibrated": "too few windows"}}
    card = model_card(replace(denoiser.ensemble, config=config), facts)
    assert front_matter(card).get("base_model") == base
    assert text in card
    assert "| calibration | none: too few windows |" in card
