"""Before llama-server with SmolLM2: what only a real engine can show, and what it does not have."""

import json

import openai
import pytest

CAPITAL = [
    {"role": "user", "content": "What is the capital city of France? Answer in one sentence."}
]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def error(client, **call):
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**call)
    return raised.value.status_code, raised.value.message


def test_the_answer_is_sensible(client, model):
    answer = client.chat.completions.create(
        model=model, messages=CAPITAL, temperature=0, max_tokens=32
    )
    assert "Paris" in answer.choices[0].message.content


def test_a_json_schema_is_obeyed(client, model):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "rank": {"enum": [1, 2, 3]}},
        "required": ["city", "rank"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=model,
        messages=CAPITAL,
        max_tokens=64,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    )
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"city", "rank"} and value["rank"] in (1, 2, 3)


def test_a_call_with_tools_is_answered(client, engine, model):
    # SmolLM2's template has no place for tools, so the model cannot call one. That the engine gets
    # them shows in its complaint about a choice that is none.
    call = {"model": model, "messages": CAPITAL, "tools": [TOOL], "max_tokens": 16}
    assert client.chat.completions.create(**call).choices[0].message.content
    assert error(client, tool_choice="sometimes", **call) == error(
        engine, tool_choice="sometimes", **call
    )


def test_logprobs_come_back(client, model):
    answer = client.chat.completions.create(
        model=model, messages=CAPITAL, max_tokens=4, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)


def test_the_seed_is_obeyed(client, model):
    def say(seed):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Tell me a story."}],
            max_tokens=24,
            temperature=1.5,
            seed=seed,
            extra_body={"cache_prompt": False},
        )
        return answer.choices[0].message.content

    assert say(1) == say(1)
    assert len({say(seed) for seed in range(4)}) > 1


def test_fields_of_the_vendor_pass_both_ways(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=CAPITAL,
        max_tokens=200,
        extra_body={"n_predict": 3, "id_slot": 1, "timings_per_token": True, "unknown_field": {"a": 1}},
    )
    assert answer.model_extra["timings"]["predicted_n"] == answer.usage.completion_tokens


def test_a_repeated_prompt_is_found_in_the_cache(client, model):
    # Longer than a block, so that the router can name it.
    story = "The quick brown fox jumps over the lazy dog near the river bank. " * 12
    messages = [{"role": "user", "content": story + "Summarise."}]
    create = client.chat.completions.with_raw_response.create
    create(model=model, messages=messages, max_tokens=4)
    again = create(model=model, messages=messages, max_tokens=4)
    assert int(again.headers["x-cgn-prefix-tokens"]) > 0
    assert again.parse().usage.prompt_tokens_details.cached_tokens > 100


def test_the_engines_own_errors_arrive_whole(client, engine, model):
    call = {"model": model, "messages": CAPITAL, "temperature": "warm"}
    assert error(client, **call) == error(engine, **call)


def test_embeddings_are_refused_with_the_reason(client, model):
    with pytest.raises(openai.APIStatusError) as error:
        client.embeddings.create(model=model, input="hello")
    assert 400 <= error.value.status_code < 500
    assert model in error.value.message and "embeddings" in error.value.message
