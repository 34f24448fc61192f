"""No value of any option escapes as another error than ConfigError, and what is accepted is a whole configuration."""

import contextlib
import math
import random
import warnings
from typing import Any

import pytest

from llm4dsr.config import Config
from llm4dsr.errors import ConfigError

from .options import WRONG, Option, every_option

OPTIONS = every_option()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: ".".join(option.path))
def test_a_wrong_value_is_refused_with_the_name_of_its_option(option: Option, tmp_path):
    for value in WRONG:
        try:
            config = Config.from_dict(option.recipe(value), "recipe.yaml")
        except ConfigError as error:
            text = str(error)
            assert text.startswith("recipe.yaml: ") or option.path[-1] in text
            assert option.path[-1] in text
            assert text.isprintable()
            assert len(text) < 1000
            assert text.endswith(".")
        else:
            accepted(config, option, value, tmp_path)


def accepted(config: Config, option: Option, value: Any, folder) -> None:
    """What is accepted is of the type and in the range that the schema promises, and survives YAML."""
    got: Any = config.to_dict()
    for name in option.path:
        got = got[name]
    kinds = option.facts.get("anyOf", [option.facts])
    assert any(fits(got, facts) for facts in kinds), (option.path, value, got)
    (folder / "recipe.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert Config.from_yaml(folder / "recipe.yaml") == config


def fits(value: Any, facts: dict[str, Any]) -> bool:
    if "enum" in facts or "const" in facts:
        return value in facts.get("enum", [facts.get("const")])
    kinds = {"integer": int, "number": (int, float), "boolean": bool, "string": str, "array": list, "null": type(None)}
    if not isinstance(value, kinds[facts["type"]]) or (isinstance(value, bool) and facts["type"] != "boolean"):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    within = facts.get("minimum", -math.inf), facts.get("maximum", math.inf)
    return not isinstance(value, int | float) or within[0] <= value <= within[1]


def test_each_end_of_a_range_is_accepted_and_what_is_beyond_is_not():
    for option in OPTIONS:
        for value in option.extremes():
            try:
                Config.from_dict(option.recipe(value))
            except ConfigError:
                assert value in ("", [], [""]), option  # schemas have the least length, too
        if "maximum" in option.facts:
            with pytest.raises(ConfigError):
                Config.from_dict(option.recipe(option.facts["maximum"] + 1))


def test_every_count_has_an_upper_end():
    """Libraries overflow or abort on larger numbers."""
    assert [o.path for o in OPTIONS if o.facts.get("type") == "integer" and "maximum" not in o.facts] == []


@pytest.mark.parametrize("seed", range(10))
def test_several_wrong_options_at_once_and_sections_of_another_kind(seed):
    rng = random.Random(seed)
    for _ in range(20):
        recipe: Any = {}
        for option in rng.sample(OPTIONS, 3):
            place = recipe
            for name in option.path[:-1]:
                place = place.setdefault(name, {}) if isinstance(place, dict) else {}
            if isinstance(place, dict):
                place[rng.choice([option.path[-1], option.path[-1] + "s", 1, None, ""])] = rng.choice(WRONG)
        if rng.random() < 0.3:
            recipe[rng.choice(["model", "train", "evaluate", "recommender", ""])] = rng.choice(WRONG)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with contextlib.suppress(ConfigError):
                Config.from_dict(recipe, "recipe.yaml")
