"""What holds before every engine: the OpenAI contract, and what the router itself answers."""

import concurrent.futures
import json

import openai
import pytest

HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]
# As `cargo xtask test` configures the router.
BODY_BYTES_MAX = 1 << 20


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_the_model_is_listed_and_can_be_retrieved(client, model):
    listed = client.models.list().data
    assert [one.id for one in listed] == [model]
    assert listed[0].object == "model"
    assert client.models.retrieve(model).id == model


def test_a_chat_is_answered_with_the_engines_usage(client, engine, model):
    call = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 16}
    answer = client.chat.completions.create(**call)
    direct = engine.chat.completions.create(**call)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_is_the_same_text_in_pieces(client, model):
    call = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 16, "seed": 7}
    chunks = list(client.chat.completions.create(stream=True, **call))
    assert len(chunks) > 2
    assert len({chunk.id for chunk in chunks}) == 1
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] in ("stop", "length") and not any(finishes[:-1])
    assert all(chunk.usage is None for chunk in chunks)
    whole = client.chat.completions.create(**call)
    assert text_of(chunks) == whole.choices[0].message.content


def test_a_stream_carries_the_engines_usage_when_asked(client, engine, model):
    call = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 12, "stream": True}
    call["stream_options"] = {"include_usage": True}
    last = list(client.chat.completions.create(**call))[-1]
    direct = list(engine.chat.completions.create(**call))[-1]
    assert last.choices == [] and last.usage.completion_tokens > 0
    assert last.usage.prompt_tokens == direct.usage.prompt_tokens
    assert last.usage.completion_tokens == direct.usage.completion_tokens


def test_completions_whole_and_streamed(client, model):
    call = {"model": model, "prompt": "One, two, three,", "temperature": 0, "max_tokens": 8, "seed": 7}
    whole = client.completions.create(**call)
    assert whole.object == "text_completion" and whole.choices[0].text
    chunks = client.completions.create(stream=True, **call)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text


def test_many_clients_at_once_are_all_answered(client, model):
    def ask(number):
        messages = [{"role": "user", "content": f"Count from {number}."}]
        return client.chat.completions.create(model=model, messages=messages, max_tokens=4)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert len({answer.id for answer in answers}) == 24


def test_a_stream_left_by_its_client_harms_nobody(client, model):
    call = {"model": model, "messages": HELLO, "max_tokens": 200}
    for _ in range(4):
        with client.chat.completions.create(stream=True, **call) as stream:
            next(iter(stream))
    assert client.chat.completions.create(model=model, messages=HELLO, max_tokens=4).choices


def test_the_decision_is_told_in_headers(client, model):
    create = client.chat.completions.with_raw_response.create
    answer = create(model=model, messages=HELLO, max_tokens=4)
    assert model in answer.headers["x-cgn-worker"]
    assert int(answer.headers["x-cgn-prefix-tokens"]) >= 0
    assert answer.headers["x-request-id"]
    mine = create(
        model=model, messages=HELLO, max_tokens=4, extra_headers={"x-request-id": "mine-42"}
    )
    assert mine.headers["x-request-id"] == "mine-42"
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=HELLO, max_tokens=4, stream=True
    ) as stream:
        assert stream.headers["x-cgn-worker"] and stream.headers["x-request-id"]
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_an_unknown_model_is_not_found(client):
    for create in (
        lambda: client.chat.completions.create(model="no-such-model", messages=HELLO),
        lambda: client.chat.completions.create(model="no-such-model", messages=HELLO, stream=True),
        lambda: client.completions.create(model="no-such-model", prompt="x"),
        lambda: client.embeddings.create(model="no-such-model", input="x"),
        lambda: client.models.retrieve("no-such-model"),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            create()
        assert error.value.code == "model_not_found"
        assert "no-such-model" in error.value.message
        assert error.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"nonsense", b'{"model":"m"', b"\xff\xfe", b'{"model":"m","messages":[}'],
)
def test_malformed_json_is_a_bad_request(raw, body):
    status, _, answer = raw("POST", "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_wrong_types_are_named(raw, model, change, param):
    body = {"model": model, "messages": HELLO, **change}
    status, _, answer = raw("POST", "/v1/chat/completions", json.dumps(body))
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param


def test_a_body_over_the_limit_is_too_large(client, raw, model):
    body = json.dumps({"model": model, "messages": HELLO, "pad": "x" * BODY_BYTES_MAX})
    status, _, answer = raw("POST", "/v1/chat/completions", body)
    assert status == 413
    assert str(BODY_BYTES_MAX) in answer["error"]["message"]
    with pytest.raises(openai.APIStatusError) as error:
        client.completions.create(model=model, prompt="x" * BODY_BYTES_MAX)
    assert error.value.status_code == 413


def test_headers_over_the_limit_are_too_large(raw):
    headers = {f"x-pad-{i}": "y" * 8000 for i in range(12)}
    status, _, answer = raw("GET", "/v1/models", None, headers)
    assert status == 431
    assert answer["error"]["message"]


def test_unknown_urls_and_methods_are_errors_of_the_api(raw):
    status, _, answer = raw("POST", "/v1/no-such-endpoint", b"{}")
    assert status == 404 and answer["error"]["type"] == "invalid_request_error"
    status, _, answer = raw("GET", "/v1/chat/completions")
    assert status == 405 and "POST" in answer["error"]["message"]
