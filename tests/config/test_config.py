"""Options: defaults, recipes, messages about wrong values, and the schema for editors."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from llm4dsr.config import Config, LLaRAConfig, RecommenderConfig, TrainConfig
from llm4dsr.config.config import RECIPES, config_schema
from llm4dsr.errors import ConfigError

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_recipes_survive_a_round_trip(name, tmp_path):
    config = Config.from_yaml(name)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert Config.from_yaml(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("train: {epoch: 3}", "train: unknown option 'epoch'. Known here: epochs, samples"),
        ("trian: {epochs: 3}", "unknown option 'trian'. Known here: seed, threads, limit, model"),
        ("train: {epochs: 1.5}", "train: epochs = 1.5; expected a whole number."),
        ("train: {epochs: true}", "train: epochs = True; expected a whole number."),
        ("train: {epochs: '3'}", "train: epochs = '3'; expected a whole number."),
        ("model: {layers: 0}", "model: layers = 0; expected a number of at least 1."),
        ("decide: {eta: 2}", "decide: eta = 2; expected a fraction, from 0 to 1."),
        ("decide: {eta: .nan}", "decide: eta = nan; expected a number."),
        ("decide: {eta: true}", "decide: eta = True; expected a number."),
        ("decide: {eta: high}", "decide: eta = 'high'; expected a number."),
        ("decide: {policy: best}", "decide: policy = 'best'; expected one of percentile, probability"),
        ("evaluate: {recommender: {loss: mse}}", "evaluate: recommender: loss = 'mse'; expected one of "),
        ("train: 3", "train: expected a mapping of options, got 3."),
        ("[1]", "expected a mapping of options, got [1]."),
    ],
)
def test_messages_name_the_wrong_option_and_what_is_allowed(recipe, message):
    with pytest.raises(ConfigError) as error:
        Config.from_dict(yaml.safe_load(recipe), "recipe.yaml")
    assert str(error.value).startswith(f"recipe.yaml: {message}")


def test_numbers_in_scientific_notation_are_numbers():
    """YAML reads 1e-4 as text."""
    assert Config.from_dict(yaml.safe_load("train: {learning_rate: 1e-4}")).train.learning_rate == 1e-4


def test_all_linear_needs_no_brackets():
    for written in ("all-linear", ["all-linear"]):
        assert Config.from_dict({"model": {"lora_targets": written}}) == Config()
    assert Config.from_yaml("paper").model.lora_targets == ("q_proj", "v_proj")
    assert Config.from_yaml("laptop").model.lora_targets == ("all-linear",)
    with pytest.raises(ConfigError, match="expected a list of names"):
        Config.from_dict({"model": {"lora_targets": "q_proj"}})


def test_an_empty_section_keeps_its_defaults():
    assert Config.from_dict({"train": None}) == Config()


def test_options_are_checked_in_python_too():
    with pytest.raises(ConfigError, match="TrainConfig: epochs = -1; expected a number of at least 0"):
        TrainConfig(epochs=-1)
    with pytest.raises(ConfigError, match="TrainConfig: epochs = -2"):
        dataclasses.replace(TrainConfig(), epochs=-2)


def test_options_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


def test_a_missing_recipe_lists_the_packaged_ones():
    with pytest.raises(ConfigError, match=rf"No recipe at {Path('nowhere')}.*{', '.join(NAMES)}"):
        Config.from_yaml("nowhere")


def test_the_schema_describes_every_option():
    """An editor shows the description while it completes a recipe."""
    schema = config_schema()
    sections = {"Config": schema, **schema["$defs"]}
    undescribed = [
        f"{section}.{option}"
        for section, content in sections.items()
        for option, facts in content["properties"].items()
        if "description" not in facts and "$ref" not in facts
    ]
    assert not undescribed
    assert sections["DecideConfig"]["properties"]["eta"]["maximum"] == 1


@pytest.mark.parametrize("kind", [RecommenderConfig, LLaRAConfig])
def test_a_recommender_is_trained_for_at_least_one_epoch(kind):
    with pytest.raises(ConfigError, match=f"{kind.__name__}: epochs = 0; expected a number of at least 1"):
        kind(epochs=0)
