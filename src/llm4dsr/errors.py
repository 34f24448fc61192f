r"""Errors that a person can act on. The command line prints their message without a traceback and exits with a code.

| code | meaning                                                                |
|------|------------------------------------------------------------------------|
| 0    | done                                                                   |
| 2    | wrong usage of a command or option                                     |
| 3    | the data cannot be used: missing column, unknown item, …               |
| 4    | the model cannot be used: wrong path, adapter of another base, …       |
| 5    | the output folder exists, is in use or full, or an earlier stage is missing |
| 6    | the configuration is invalid                                           |
| 130  | interrupted (Ctrl-C)                                                   |
| 143  | terminated                                                             |
"""


def plain(text: str) -> str:
    r"""Escape what a terminal should not be given: control characters and direction marks. Line ends stay.

    Examples
    --------
    >>> plain("\x1b[31mred\u202e")
    '\\x1b[31mred\\u202e'
    """
    return "".join(ch if ch.isprintable() or ch == "\n" else repr(ch)[1:-1] for ch in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, where libraries such as PyTorch put the reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


class LLM4DSRError(Exception):
    """Base class. The message says what came, what was expected, and what to do; its text is `plain`."""

    exit_code = 1

    def __str__(self) -> str:
        return plain(super().__str__())


class DataError(LLM4DSRError):
    """The data cannot be used."""

    exit_code = 3


class ModelError(LLM4DSRError):
    """The model cannot be used."""

    exit_code = 4


class OutputError(LLM4DSRError):
    """The output folder cannot be used."""

    exit_code = 5


class ConfigError(LLM4DSRError):
    """The configuration is invalid."""

    exit_code = 6
