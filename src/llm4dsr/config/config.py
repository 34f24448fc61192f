"""The whole configuration: read from YAML or a mapping, checked, and described as a JSON schema."""

import functools
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from llm4dsr.config.denoiser import (
    CorrectConfig,
    DecideConfig,
    ModelConfig,
    ScoreConfig,
    SuggestConfig,
    TaskConfig,
    TrainConfig,
)
from llm4dsr.config.fields import Count, Seed, Threads, message, options
from llm4dsr.config.recommenders import EvaluateConfig
from llm4dsr.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


@options
class Config:
    """All options of a run. Each section belongs to one stage.

    Examples
    --------
    >>> config = Config.from_dict({"train": {"epochs": 2}})
    >>> config.train.epochs, config.train.folds
    (2, 3)
    """

    seed: Seed = 0
    """Seed of everything random."""
    threads: Threads = 0
    """CPU threads, at most 1024. 0: all."""
    limit: Count = 0
    """Windows used of each split, for a quick look. 0: all."""
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
    suggest: SuggestConfig = field(default_factory=SuggestConfig)
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """All options as nested dictionaries of plain values, for YAML and JSON."""
        plain: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return plain

    @classmethod
    def from_dict(
        cls, data: dict[str, Any] | None, where: str = "the configuration", base: "Config | None" = None
    ) -> "Config":
        """Read options from nested dictionaries; options that are left out keep their defaults.

        Parameters
        ----------
        data : dict or None
            Sections and options, as in a recipe. None: all defaults.
        where : str, default "the configuration"
            The source, for messages.
        base : Config, optional
            Has the options that are left out. Default: all defaults.

        Returns
        -------
        Config

        Raises
        ------
        ConfigError
            Names the first wrong option, its value, and what is allowed.
        """
        merged = _merge((base or cls()).to_dict(), data or {})
        try:
            config: Config = _adapter().validate_python(merged)
        except ValidationError as error:
            raise ConfigError(f"{where}: {message(error, cls)}") from None
        return config

    @classmethod
    def from_yaml(cls, path: str | Path, base: "Config | None" = None) -> "Config":
        """Read options from a YAML file, or from a packaged recipe by its name (demo, laptop, paper).

        Options that are left out are those of `base`, or their defaults.

        Raises
        ------
        ConfigError
            If there is no such file or recipe, or an option is wrong.
        """
        path, given = RECIPES / f"{path}.yaml", Path(path)
        if given.is_file() or not path.is_file():
            path = given
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
            raise ConfigError(f"No recipe at {path}. Give the path of a YAML file, or one of the names {names}.")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # an impossible date is a ValueError
            raise ConfigError(f"{path} is not readable YAML: {error}") from None
        return cls.from_dict(data, str(path), base)

    def to_yaml(self) -> str:
        """All options as YAML, which `from_yaml` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


@functools.cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def config_schema() -> dict[str, Any]:
    """JSON schema of a recipe, from which editors complete and check options."""
    return _adapter().json_schema()


def _merge(default: Any, data: Any) -> Any:
    """`data` over `default`, section by section; an empty section keeps its defaults."""
    if not isinstance(default, dict):
        return data
    if data is None:
        return default
    if not isinstance(data, dict):
        return data
    return default | {key: _merge(default.get(key), value) for key, value in data.items()}
