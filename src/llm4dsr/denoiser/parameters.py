"""The parameters of a denoiser, as scikit-learn reads and sets them."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from llm4dsr.config import Config
from llm4dsr.errors import ConfigError


class Parameters:
    """What scikit-learn asks of a step of a `Pipeline`.

    The parameters are `config`, `items`, and each option of the configuration as `section__option`, such as
    `decide__eta`.
    """

    def __init__(self, config: Config | None = None, items: Any = None) -> None:
        self.config = config or Config()
        self.items = items
        self._ensemble: Any = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; `deep` adds each option of the configuration as `section__option`."""
        out = {"config": self.config, "items": self.items}
        for section in dataclasses.fields(self.config) if deep else ():
            of = getattr(self.config, section.name)
            if dataclasses.is_dataclass(of):
                out |= {f"{section.name}__{option.name}": getattr(of, option.name) for option in dataclasses.fields(of)}
            else:
                out[section.name] = of
        return out

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name, and return itself.

        Those of `decide`, `suggest` and `correct` take effect at once, and are saved; all others at the next `fit`.

        Raises
        ------
        ConfigError
            If a name is unknown, or a value is out of range.
        """
        for name in ("config", "items"):
            if name in params:
                setattr(self, name, params.pop(name))
        known = self.get_params()
        options = self.config.to_dict()
        for name, value in params.items():
            if name not in known:
                raise ConfigError(f"There is no parameter {name!r}; expected config, items or, say, decide__eta.")
            section, _, option = name.partition("__")
            options = options | {section: options[section] | {option: value} if option else value}
        if params:
            self.config = Config.from_dict(options, "set_params")
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return self._ensemble is not None

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags())
