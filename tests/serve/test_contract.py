"""The service keeps to its OpenAPI description, whatever is sent."""

import pytest
from hypothesis import HealthCheck, given, settings

from llm4dsr.serve.schema import REQUEST, Request

schemathesis = pytest.importorskip("schemathesis")
Mode = schemathesis.GenerationMode

# Some rules compare fields, which JSON Schema cannot say: a policy needs eta, each item a timestamp
NOT_CHECKED = [pytest.importorskip("schemathesis.specs.openapi.checks").positive_data_acceptance]


@pytest.fixture(scope="module")
def api(denoiser):
    from llm4dsr.serve import Service, create_app

    service = Service(denoiser)
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    service.close()


@pytest.mark.parametrize("mode", [Mode.POSITIVE, Mode.NEGATIVE], ids=["as described", "not as described"])
def test_requests_are_answered_as_described(api, mode):
    @given(case=api["/v1/denoise"]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case):
        case.call_and_validate(excluded_checks=NOT_CHECKED)

    check()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_states_are_answered_as_described(api, path):
    @given(case=api[path]["GET"].as_strategy())
    @settings(max_examples=3, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case):
        case.call_and_validate()

    check()


def test_the_example_is_valid():
    assert Request(**REQUEST).model_dump(exclude_unset=True) == REQUEST
