"""Every option of the configuration, found from its JSON schema, with wrong and with extreme values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm4dsr.config.config import config_schema

HUGE = 10**30
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, HUGE, -HUGE, 1e308, float("nan"), float("inf"), float("-inf"), "", "text", "1e-4",
    "9" * 5000, "\x1b[31m", [], [None], [1, "a"], {}, {"a": 1}, {1: 2},
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option: its sections and name, and what the schema says about it."""

    path: tuple[str, ...]
    facts: dict[str, Any]

    def recipe(self, value: Any) -> dict[str, Any]:
        """A recipe that sets this option alone, and what it cannot be without."""
        recipe: Any = {self.path[-1]: value}
        if value == "likelihood":
            recipe["item_input"] = "title"
        for name in reversed(self.path[:-1]):
            recipe = {name: recipe}
        return recipe  # type: ignore[no-any-return]

    def extremes(self) -> list[Any]:
        """The ends of what the schema allows; every choice and both truth values."""
        kinds = self.facts.get("anyOf", [self.facts])
        found: list[Any] = []
        for facts in kinds:
            if "enum" in facts:
                found += facts["enum"]
            elif facts["type"] == "boolean":
                found += [False, True]
            elif facts["type"] == "integer":
                found += [facts["minimum"], facts["minimum"] + 1, facts.get("maximum", 2**31 - 1)]
            elif facts["type"] == "number":
                least, most = facts.get("minimum", 0.0), facts.get("maximum", 1.7e308)
                found += [least, 5e-324 if most > 0 else -5e-324, most]
            elif facts["type"] == "array":
                found += [[], [""], ["q_proj", "q_proj"]]
            elif facts["type"] == "string":
                found += ["", " ", "x" * 10_000, "\0", "../..", "~", "https://x/y"]
        return found


def every_option() -> list[Option]:
    """All options of the schema, in its order."""
    schema = config_schema()

    def walk(facts: dict[str, Any], path: tuple[str, ...]) -> Iterator[Option]:
        if "$ref" in facts:
            facts = {**schema["$defs"][facts["$ref"].rsplit("/", 1)[-1]], "section": True}
        if "properties" not in facts:
            yield Option(path, facts)
            return
        for name, inner in facts["properties"].items():
            yield from walk(inner, (*path, name))

    return list(walk(schema, ()))
