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


class LLM4DSRError(Exception):
    """Base class; the message says what came, what was expected and what to do."""

    exit_code = 1


class DataError(LLM4DSRError):
    exit_code = 3


class ModelError(LLM4DSRError):
    exit_code = 4


class OutputError(LLM4DSRError):
    exit_code = 5


class ConfigError(LLM4DSRError):
    exit_code = 6
