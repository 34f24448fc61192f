"""Errors that a person can act on. The CLI prints their message, without a traceback, and exits with `exit_code`.

| code | meaning                                                        |
|------|----------------------------------------------------------------|
| 0    | done                                                           |
| 2    | wrong usage of a command or option (Typer's own)               |
| 3    | the data cannot be used: missing column, unknown item, …       |
| 4    | the model cannot be used: wrong path, adapter of another base  |
| 5    | the output folder exists already, or an earlier stage is missing |
| 6    | the configuration is invalid                                   |
| 130  | interrupted (Ctrl-C); 143: terminated                          |
"""


def plain(text: str) -> str:
    """Text that a terminal can be given, whatever stood in the data: what is not printable (control characters, marks
    of writing direction) is written as Python writes it, line ends stay.

    >>> plain("\x1b[31mred\u202e")
    '\\x1b[31mred\\u202e'
    """
    return "".join(ch if ch.isprintable() or ch == "\n" else repr(ch)[1:-1] for ch in text)


class LLM4DSRError(Exception):
    """Base class; the message says what came, what was expected and what to do. As text it is `plain`."""

    exit_code = 1

    def __str__(self) -> str:
        return plain(super().__str__())


class DataError(LLM4DSRError):
    exit_code = 3


class ModelError(LLM4DSRError):
    exit_code = 4


class OutputError(LLM4DSRError):
    exit_code = 5


class ConfigError(LLM4DSRError):
    exit_code = 6
