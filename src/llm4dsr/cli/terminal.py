"""What the command line shows: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import AbstractContextManager

from rich.console import Console
from rich.logging import RichHandler

from llm4dsr.core import progress_bar
from llm4dsr.core.progress import Progress

console = Console(emoji=False)  # :name: in a path stays as it is
messages = Console(stderr=True, emoji=False)


def set_up() -> None:
    """Send our warnings to standard error, and hide those of libraries that a user cannot act on."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # our own progress shows what takes time
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(transformers|peft|torch|huggingface_hub)\b")
    log = logging.getLogger("llm4dsr")
    if not log.handlers:
        log.addHandler(RichHandler(console=messages, show_time=False, show_path=False))
        log.propagate = False


def bar() -> AbstractContextManager[Progress]:
    """Yield a progress callback that shows on standard error."""
    return progress_bar.bar(messages)
