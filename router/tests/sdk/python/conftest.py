"""Where the router, the engine behind it and the model are: `cargo xtask test` says it by environment."""

import http.client
import json
import os
import urllib.parse

import openai
import pytest


def _environment(name):
    value = os.environ.get(name)
    assert value, f"{name} is not set; run: cargo xtask test --only sdk-python"
    return value


@pytest.fixture(scope="session")
def model():
    return _environment("CGN_MODEL")


def _client(url):
    # No retries: each answer is the first answer.
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def client():
    """The SDK before the router."""
    return _client(_environment("CGN_BASE_URL"))


@pytest.fixture(scope="session")
def engine():
    """The SDK before the engine itself, for comparison."""
    return _client(_environment("CGN_ENGINE_URL"))


@pytest.fixture
def raw():
    """Sends bytes the SDK would not: (method, path, body, headers) to (status, headers, JSON)."""
    address = urllib.parse.urlsplit(_environment("CGN_BASE_URL"))

    def send(method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read())
        finally:
            connection.close()

    return send
