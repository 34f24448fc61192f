"""The service: denoise histories over HTTP, in micro-batches, within limits."""

from llm4dsr.serve.app import create_app
from llm4dsr.serve.limits import Limits, read_token
from llm4dsr.serve.server import serve
from llm4dsr.serve.service import Service

__all__ = ["Limits", "Service", "create_app", "read_token", "serve"]
