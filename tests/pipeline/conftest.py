"""What tests with Ray need."""

import pytest


@pytest.fixture
def ray(monkeypatch):
    """Ray, whose processes end with the test. What it starts here listens on 127.0.0.1 alone."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    library = pytest.importorskip("ray")
    yield library
    library.shutdown()
