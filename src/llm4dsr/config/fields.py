"""Types of options (what they accept, which range they allow), and messages about wrong ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from llm4dsr.errors import ConfigError

T = TypeVar("T")
MOST = 2**31 - 1  # the largest count that all libraries take
SHOWN = 80  # characters of a wrong value in a message


def _no_bool(value: Any) -> Any:
    """Refuse true and false, which would pass as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
PositiveInt = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Threads = Annotated[int, Field(strict=True, ge=0, le=1024)]  # the system may abort a process that starts more
UpTo1024 = Annotated[int, Field(strict=True, ge=1, le=1024)]
VocabularySize = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]  # tokenizers reserves memory for all of it
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Name = Annotated[str, Field(min_length=1)]
# YAML reads 1e-4 as text, so text that is a number is accepted.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_no_bool)]
Penalty = Annotated[float, Field(ge=-100, le=0, allow_inf_nan=False), BeforeValidator(_no_bool)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_no_bool)]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def options(kind: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are checked, and which raises ConfigError.

    The text under a field becomes its description in the JSON schema.
    """
    checked: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))(kind)
    check = checked.__init__

    @functools.wraps(check)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise ConfigError(f"{kind.__name__}: {message(error, checked)}") from None

    checked.__init__ = init
    return checked  # type: ignore[no-any-return]


def message(error: ValidationError, kind: type[Any]) -> str:
    """Describe the first wrong option: where it is, what came, what was expected."""
    first = error.errors(include_url=False)[0]
    *section, key = [str(part) for part in first["loc"]] or ["configuration"]
    place, limits = "".join(f"{_shown(part, str)}: " for part in section), first.get("ctx", {})
    value, key = _shown(first["input"], repr), _shown(key, str)
    match first["type"]:
        case "unfitting":  # options that exclude each other
            return "".join(f"{part}: " for part in first["loc"]) + first["msg"]
        case "unexpected_keyword_argument":
            return f"{place}unknown option {key!r}. Known here: {', '.join(_known(kind, section))}."
        case "dataclass_type" | "dataclass_exact_type":
            inside = "" if not first["loc"] else f"{place}{key}: "
            return f"{inside}expected a mapping of options, got {value}."
        case "literal_error":
            allowed = str(limits["expected"]).replace("'", "").replace(" or ", ", ")
            return f"{place}{key} = {value}; expected one of {allowed}."
        case "greater_than_equal":
            return f"{place}{key} = {value}; expected a number of at least {limits['ge']:g}."
        case "less_than_equal":
            most = "fraction, from 0 to 1" if limits["le"] == 1 else f"number of at most {limits['le']}"
            return f"{place}{key} = {value}; expected a {most}."
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return f"{place}{key} = {value}; expected a whole number."
        case "float_type" | "float_parsing" | "finite_number" | "value_error":
            return f"{place}{key} = {value}; expected a number."
        case "bool_type" | "bool_parsing":
            return f"{place}{key} = {value}; expected true or false."
        case "string_type":
            return f"{place}{key} = {value}; expected text."
        case "tuple_type":
            return f"{place}{key} = {value}; expected a list of names."
        case "string_too_short" | "too_short":
            return f"{place}{key} = {value}; expected {'text' if first['input'] == '' else 'at least one name'}."
    return f"{place}{key} = {value}: {first['msg']}."


def _shown(value: Any, text: Callable[[Any], str]) -> str:
    """The value for a message, cut where it is long."""
    try:
        full = text(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a list within itself
        full = f"<{type(value).__name__}>"
    return full if len(full) <= SHOWN else f"{full[:SHOWN]}…"


def _known(kind: type[Any], section: list[str]) -> list[str]:
    """Names of the options in a section."""
    here: Any = kind()
    for name in section:
        here = getattr(here, name)
    return [option.name for option in dataclasses.fields(here)]
