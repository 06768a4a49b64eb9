"""Before the simulated engine: the endpoints and shapes a small real model does not have."""

import json

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def test_embeddings_of_one_and_of_many(client, model):
    one = client.embeddings.create(model=model, input="hello")
    assert len(one.data) == 1 and len(one.data[0].embedding) > 0
    many = client.embeddings.create(model=model, input=["hello", "world"])
    assert [item.index for item in many.data] == [0, 1]
    assert many.data[0].embedding == one.data[0].embedding
    assert many.usage.prompt_tokens > 0


def test_a_tool_call_comes_back_and_its_result_goes_on(client, model):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model=model, messages=HELLO, tools=[TOOL], tool_choice=choice, max_tokens=256
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky":"blue"}'}
    turns = [*HELLO, answer.choices[0].message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(
        model=model, messages=turns, tools=[TOOL], max_tokens=8
    )
    assert answer.choices[0].message.content


def test_a_streamed_tool_call_assembles(client, model):
    chunks = client.chat.completions.create(
        model=model,
        messages=HELLO,
        tools=[TOOL],
        tool_choice="required",
        max_tokens=256,
        stream=True,
    )
    calls = [
        call
        for chunk in chunks
        if chunk.choices
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert calls[0].function.name == "get_weather"
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert "city" in json.loads(arguments)


def test_equal_requests_give_equal_texts(client, engine, model):
    call = {"model": model, "messages": HELLO, "max_tokens": 32, "seed": 3}
    texts = {
        of.chat.completions.create(**call).choices[0].message.content
        for of in (client, client, engine)
    }
    assert len(texts) == 1


def test_several_choices_pass(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_an_answer_longer_than_any_buffer_arrives_whole(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=4000,
        extra_body={"ignore_eos": True},
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = [chunk.usage for chunk in answer if chunk.usage][-1]
    assert usage.completion_tokens == 4000


def test_the_engines_own_errors_arrive_whole(client, engine, model):
    call = {"model": model, "messages": [{"role": "user", "content": "x " * 40_000}]}

    def error(of):
        with pytest.raises(openai.BadRequestError) as raised:
            of.chat.completions.create(**call)
        return raised.value.status_code, raised.value.message

    assert error(client) == error(engine)
