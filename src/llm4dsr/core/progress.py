"""Progress callbacks, and the package's logger.

Long work takes a `Progress` and calls it with (steps done, all steps, what is being done). All steps are 0 where the
total is unknown. How progress is shown is the caller's matter: the command line shows bars, and so does `True` in
place of a callback (`progress_bar.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("llm4dsr")
Progress = Callable[[int, int, str], None]


def subprogress(progress: Progress, before: int, size: int, total: int) -> Progress:
    """Report the progress of a part as progress of the whole.

    Parameters
    ----------
    progress : Progress
        Of the whole.
    before, size, total : int
        Steps before the part, in the part, and in the whole.

    Examples
    --------
    >>> part = subprogress(lambda *report: print(*report), before=10, size=20, total=100)
    >>> part(1, 2, "score")  # half of the part
    20 100 score
    """
    return lambda done, of, doing: progress(before + size * done // max(1, of), total, doing)
