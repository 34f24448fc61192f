"""The README.md of a saved denoiser: what it is, what it learned from, how sure it is, and how to use it.

Its first lines are those that a model hub reads. The license is left to whoever publishes the model.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final

from llm4dsr.config import EMBEDDED
from llm4dsr.core.hashing import versions
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.ensemble import Ensemble

NAME: Final = "README.md"
_HUB_NAME: Final = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"

_TEXT: Final = """---
library_name: llm4dsr
tags:
- recommender-systems
- sequential-recommendation
- denoising
- llm4dsr
{base}# license: the data and the base model decide; add yours before you publish
---

# A denoiser of user histories

It scores how likely each interaction of a history is noise, such as an accidental click or a gift, and suggests a
better item. The method is LLM4DSR ([arXiv 2408.08208](https://arxiv.org/abs/2408.08208)).

## How to use it

```python
from llm4dsr import Denoiser

denoiser = Denoiser.from_pretrained("path/to/this/folder")
cleaned = denoiser.transform(histories, policy="probability", eta=0.7, action="drop")
```

`histories` are lists of item ids, a table with `item_ids`, or a long table `user_id, item_id, timestamp`.

## What it learned from

| | |
|---|---|
{sizes}

It learned from noise that was injected into these histories. No label was read.

## How sure it is

| | |
|---|---|
{calibration}

Probabilities rest on injected noise: no label-free estimate can tell noise from a user's own odd choices.

## Limits

- It knows the {items:,} items of its catalogue. Others are not scored, unless `with_items` adds them by their titles.
- Bursts of noise, such as a child's whole afternoon, are hardly found.
- Whether a recommender gains must be measured with that recommender, on original and corrected histories.
- The folder holds all item ids and titles, and hashes of user ids and of the pairs of items that a user has. Whoever
  can guess a user id can find out whether its user was in training. Do not publish it where that matters.

Made with llm4dsr {version}.
"""


def model_card(ensemble: Ensemble, facts: dict[str, Any]) -> str:
    """Return the model card.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models.
    facts : dict
        As `save_denoiser` takes them: `curve, width, calibrator`, and if known `learned_from`.
    """
    config, found = ensemble.config, facts.get("learned_from", {})
    source = config.model.source
    is_named = re.fullmatch(_HUB_NAME, source) is not None and not Path(source).exists()
    sizes = {name.replace("_", " "): f"{count:,}" for name, count in found.items()}
    sizes |= {
        "items": f"{len(ensemble.catalogue):,}", "users": f"{len(ensemble.seen):,}",
        "items of the longest history": str(facts["width"]),
        "language model": _described(source, is_named),
        "models (one per fold)": str(len(ensemble.models)),
        "parameters of each": f"{sum(p.numel() for p in ensemble.models[0].parameters()):,}",
        "last tuning loss": f"{facts['curve'][-1]:.3f}" if facts["curve"] else "–",
    }  # fmt: skip
    return _TEXT.format(
        base=f"base_model: {source}\n" if is_named else "", sizes=_rows(sizes), calibration=_rows(_calibration(facts)),
        items=len(ensemble.catalogue), version=versions("llm4dsr")["llm4dsr"],
    )  # fmt: skip


def _described(source: str, is_named: bool) -> str:
    if source == EMBEDDED:
        return "a small Llama, trained from scratch"
    return source if is_named or "/" not in source.replace("\\", "/") else "a local model"


def _calibration(facts: dict[str, Any]) -> dict[str, str]:
    found = Calibrator(**facts["calibrator"])
    if found.uncalibrated or not found.kinds:
        return {"calibration": f"none: {found.uncalibrated or 'it is turned off'}"}
    return {
        "estimated noise rate": f"{found.rate_low:.1%} to {found.rate_high:.1%}",
        "ECE on injected noise, before calibration": _number(found.ece_before),
        "ECE on injected noise, after calibration": _number(found.ece_after),
    }


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _rows(values: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in values.items())
