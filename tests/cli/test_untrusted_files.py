"""Files of others cannot run code: weights, adapters, tokenizers and recipes."""

import json
import pickle
import re
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr import Config, Denoiser
from llm4dsr.config import ModelConfig
from llm4dsr.core.manifest import write_manifest
from llm4dsr.data.catalogue import Catalogue, clean_title
from llm4dsr.data.windows import limit_windows
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.lm.load import add_lora, load_lm
from llm4dsr.lm.prompt import INSTRUCTION, ITEMS, MARKERS, NO, NO_NOISE, NOISE, SUGGESTED, YES

from .tokenizer import wild_tokenizer

torch.set_num_threads(1)
FORMS = [
    *product(["title", "soft_token"], ["title", "per_position"], ["causal"]),
    ("soft_token", "per_position", "bidirectional"),
]
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 400}
PLAIN = ["Truck", "Ball", "Doll"]
FRAGMENTS = [
    '"', '", "', "'", "\n", "\r\n", "\x00", INSTRUCTION, ITEMS, NOISE, SUGGESTED, YES, NO, *MARKERS[:3], *MARKERS[-2:],
    'Noise Items: "Ball"', '"\nSuggested Replacements: "Doll', NO_NOISE, "(NO ITEM)", "(no item).", "<s>", "</s>",
    "<pad>", "<|end|>", "<think>", "<THINK>", "\uff02", "&quot;", "&#34;", "&amp;quot;", "\u202e", "\u200f", "\u2066",
    "\ufeff",
    "🚂", "👩‍🚀", "قطار", "\x1b[31m", "\x1b]8;;http://x\x07", "[red]", "[/]", "[link=http://x]", "\\", "{}", "%s",
    "x" * 300, " ", ":", ",", ".", "Truck", "é", "e\u0301",
]  # fmt: skip
TITLES = (
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), min_size=1, max_size=6)
    .map("".join).map(clean_title).filter(bool)
)  # fmt: skip


# --- what is loaded --------------------------------------------------------------------------------------------------

SEEN: list[str] | None = None  # what was opened or unpickled, while it is a list


def _watch(event: str, arguments: tuple) -> None:
    if SEEN is not None and event in ("open", "pickle.find_class"):
        SEEN.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


@pytest.fixture
def seen():
    global SEEN
    SEEN = []
    yield SEEN
    SEEN = None


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


def plant(folder: Path, proof: Path) -> set[str]:
    """Pickles under all names that some library would read; returns the names."""
    names = {"pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.pkl", "projector.bin",
             "projector.pt", "tokenizer.pkl", "vocab.pkl", "items.pkl", "users.npy", "denoiser.pkl", "optimizer.pt",
             }  # fmt: skip
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Evil(proof)))
    return names


def opened(seen: list[str], names: set[str]) -> list[str]:
    return [entry for entry in seen if entry.startswith("pickle") or Path(entry.split(" ", 1)[1]).name in names]


def test_the_trap_works(tmp_path, seen):
    """Else the tests below could not fail."""
    names = plant(tmp_path, tmp_path / "proof")
    with (tmp_path / "model.pkl").open("rb") as stream:
        pickle.load(stream)
    assert (tmp_path / "proof").exists()
    assert len(opened(seen, names)) >= 2  # that it was opened, and that it was unpickled


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_demo) -> Path:
    """The default model of a catalogue with nasty titles, saved. Shared; copy it before changing it."""
    titles = [
        clean_title(f"{FRAGMENTS[i % len(FRAGMENTS)]} {title}") for i, title in enumerate(tiny_demo.catalogue.titles)
    ]
    train = {"folds": 1, "epochs": 1, "samples": 40, "batch_windows": 20}
    config = {"threads": 1, "model": {"vector_size": 16, **SMALL}, "train": train, "score": {"calibration_draws": 1}}
    catalogue = Catalogue(tiny_demo.catalogue.ids, titles)
    valid = limit_windows(tiny_demo.splits["valid"].histories(), 25, 0)
    denoiser = Denoiser(Config.from_dict(config)).fit(tiny_demo.splits["train"], catalogue, valid)
    folder: Path = tmp_path_factory.mktemp("saved") / "model"
    denoiser.save_pretrained(folder)
    return folder


def test_a_saved_denoiser_loads_without_a_pickle(tmp_path, saved, tiny_demo, seen):
    shutil.copytree(saved, tmp_path / "model")
    names = plant(tmp_path / "model", tmp_path / "proof") | plant(tmp_path / "model" / "lm", tmp_path / "proof")
    seen.clear()
    denoiser = Denoiser.from_pretrained(tmp_path / "model")
    result = denoiser.correct(limit_windows(tiny_demo.splits["test"], 20, 0), has_target=True)
    assert opened(seen, names) == []
    assert not (tmp_path / "proof").exists()
    for column in ("title", "suggested_title"):
        assert all(title is None or clean_title(title) == title for title in result.edits[column])


def test_a_saved_denoiser_whose_weights_are_a_pickle_is_refused(tmp_path, saved, seen):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "lm" / "model.safetensors").unlink()
    names = plant(tmp_path / "model" / "lm", tmp_path / "proof")
    write_manifest(tmp_path / "model")
    seen.clear()
    with pytest.raises(ModelError, match="No causal language model could be loaded"):
        Denoiser.from_pretrained(tmp_path / "model")
    assert opened(seen, names) == []
    assert not (tmp_path / "proof").exists()


@pytest.fixture
def base(tmp_path) -> Path:
    """A checkpoint as from the hub."""
    tokenizer = wild_tokenizer()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base: Path, folder: Path) -> Path:
    config = ModelConfig(source=str(base))
    add_lora(load_lm(str(base), config)[0], config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("other", [None, "other.safetensors"], ids=["no weights", "weights under another name"])
def test_an_adapter_whose_weights_are_a_pickle_is_refused(tmp_path, base, seen, other):
    """peft reads adapter_model.bin where adapter_model.safetensors is not."""
    folder = adapter(base, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / other) if other else weights.unlink()
    names = plant(folder, tmp_path / "proof")
    seen.clear()
    with pytest.raises(ModelError, match=r"holds no (\*|adapter_model).safetensors"):
        load_lm(str(folder), ModelConfig())
    assert opened(seen, names) == []
    assert not (tmp_path / "proof").exists()


def test_an_adapter_of_an_adapter_is_refused(tmp_path, base, seen):
    """transformers would load the inner one by itself, pickled or not."""
    folder = adapter(base, tmp_path / "adapter")
    shutil.copy(folder / "adapter_config.json", base)
    names = plant(base, tmp_path / "proof")
    seen.clear()
    for source in (folder, base):
        with pytest.raises(ModelError, match=r"is an adapter, too"):
            load_lm(str(source), ModelConfig())
    assert opened(seen, names) == []


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_not_run(tmp_path, base, file):
    """auto_map names a Python file of the repository, which trust_remote_code would import."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'proof')!r}).touch()\nclass Mine: pass\n"
    (base / "mine.py").write_text(code)
    given = json.loads((base / file).read_text())
    of = ["mine.Mine", "mine.Mine"] if file == "tokenizer_config.json" else "mine.Mine"
    given |= {"auto_map": {"AutoConfig": of, "AutoModelForCausalLM": of, "AutoTokenizer": of}}
    (base / file).write_text(json.dumps(given))
    load_lm(str(base), ModelConfig())  # of a known kind: ours is taken instead
    assert not (tmp_path / "proof").exists()
    given |= {"model_type": "mine", "tokenizer_class": "Mine"}
    (base / file).write_text(json.dumps(given))
    with pytest.raises(ModelError, match="No causal language model could be loaded"):
        load_lm(str(base), ModelConfig())
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        "seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{proof}]]",
        "!!python/object:llm4dsr.config.Config {{seed: 1}}",
        "seed: !!python/name:os.system",
        "seed: 2024-13-45",
        "seed: " + "[" * 3_000,
        "seed: &a [*a]",
        "\x00",
    ],
    ids=["apply", "object", "name", "no date", "deep", "within itself", "no text"],
)
def test_a_recipe_is_data(tmp_path, recipe):
    (tmp_path / "recipe.yaml").write_text(recipe.format(proof=tmp_path / "proof"))
    with pytest.raises(ConfigError):
        Config.from_yaml(tmp_path / "recipe.yaml")
    assert not (tmp_path / "proof").exists()


def test_our_own_code_has_no_way_to_load_a_pickle():
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(sys.modules["llm4dsr"].__file__).parent.rglob("*.py")
    )
    assert set(re.findall(r"\byaml\.(\w+)\(", code)) <= {"safe_load", "safe_dump"}
    assert not re.search(r"\b(pickle|torch|np|joblib|dill)\.loads?\(", code)
    assert set(re.findall(r"trust_remote_code\W+(\w+)", code)) == {"False"}
