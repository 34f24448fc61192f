"""Review flags one by one on a local page. Answers are labels: they measure precision and narrow probabilities."""

from llm4dsr.review.server import create_app, serve_review
from llm4dsr.review.session import Review

__all__ = ["Review", "create_app", "serve_review"]
