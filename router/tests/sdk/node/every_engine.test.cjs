// What holds before every engine: the OpenAI contract, and what the router itself answers.
'use strict';

const assert = require('node:assert/strict');
const http = require('node:http');
const test = require('node:test');

const { OpenAI, baseURL, client, hello, model } = require('./router.cjs');

// As `cargo xtask test` configures the router.
const BODY_BYTES_MAX = 1 << 20;

function raw(method, path, body, headers = { 'content-type': 'application/json' }) {
  return new Promise((resolve, reject) => {
    const request = http.request(baseURL + path, { method, headers }, (response) => {
      let text = '';
      response.on('data', (bytes) => (text += bytes));
      response.on('end', () => resolve({ status: response.statusCode, json: JSON.parse(text) }));
    });
    request.on('error', reject);
    request.end(body);
  });
}

test('the model is listed and can be retrieved', async () => {
  const listed = (await client.models.list()).data;
  assert.deepEqual(listed.map((one) => one.id), [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test('a chat is answered with its usage', async () => {
  const answer = await client.chat.completions.create({ model, messages: hello, max_tokens: 16 });
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(answer.choices[0].message.content);
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
  assert.ok(prompt_tokens > 0 && completion_tokens > 0);
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
});

test('a streamed chat is the same text in pieces, with usage when asked', async () => {
  const call = { model, messages: hello, temperature: 0, seed: 7, max_tokens: 16 };
  const stream_options = { include_usage: true };
  const stream = await client.chat.completions.create({ ...call, stream: true, stream_options });
  const finishes = [];
  let text = '';
  let last;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? '';
    if (chunk.choices[0]?.finish_reason) finishes.push(chunk.choices[0].finish_reason);
    last = chunk;
  }
  assert.equal(finishes.length, 1);
  assert.ok(['stop', 'length'].includes(finishes[0]));
  const whole = await client.chat.completions.create(call);
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(last.usage.prompt_tokens, whole.usage.prompt_tokens);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
});

test('completions, whole and streamed', async () => {
  const call = { model, prompt: 'One, two, three,', temperature: 0, seed: 7, max_tokens: 8 };
  const whole = await client.completions.create(call);
  let text = '';
  for await (const chunk of await client.completions.create({ ...call, stream: true })) {
    text += chunk.choices[0]?.text ?? '';
  }
  assert.ok(text);
  assert.equal(text, whole.choices[0].text);
});

test('the decision is told in headers', async () => {
  const call = { model, messages: hello, max_tokens: 4 };
  const headers = { 'x-request-id': 'mine-42' };
  const { response } = await client.chat.completions.create(call, { headers }).withResponse();
  assert.equal(response.headers.get('x-request-id'), 'mine-42');
  assert.ok(response.headers.get('x-cgn-worker').includes(model));
  assert.match(response.headers.get('x-cgn-prefix-tokens'), /^\d+$/);
});

test('a stream left by its client harms nobody', async () => {
  const call = { model, messages: hello, max_tokens: 200, stream: true };
  for (let i = 0; i < 4; i += 1) {
    const stream = await client.chat.completions.create(call);
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      break;
    }
    stream.controller.abort();
  }
  const after = await client.chat.completions.create({ ...call, stream: false, max_tokens: 4 });
  assert.equal(after.choices.length, 1);
});

test('an unknown model is not found', async () => {
  const unknown = 'no-such-model';
  for (const ask of [
    () => client.chat.completions.create({ model: unknown, messages: hello }),
    () => client.chat.completions.create({ model: unknown, messages: hello, stream: true }),
    () => client.completions.create({ model: unknown, prompt: 'x' }),
    () => client.embeddings.create({ model: unknown, input: 'x' }),
  ]) {
    await assert.rejects(ask, (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, 'model_not_found');
      return true;
    });
  }
});

test('malformed JSON and wrong types are bad requests', async () => {
  for (const body of ['', '{', '[]', '{"model":"m"', `{"model":"${model}","messages":"hi"}`]) {
    const { status, json } = await raw('POST', '/v1/chat/completions', body);
    assert.equal(status, 400, body);
    assert.equal(json.error.type, 'invalid_request_error');
  }
  await assert.rejects(
    () => client.chat.completions.create({ model, messages: hello, stream: 'yes' }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === 'stream',
  );
});

test('a body and headers over their limits are refused as such', async () => {
  await assert.rejects(
    () => client.completions.create({ model, prompt: 'x'.repeat(BODY_BYTES_MAX) }),
    (error) => error.status === 413,
  );
  const headers = Object.fromEntries(
    Array.from({ length: 12 }, (_, i) => [`x-pad-${i}`, 'y'.repeat(8000)]),
  );
  const { status, json } = await raw('GET', '/v1/models', undefined, headers);
  assert.equal(status, 431);
  assert.ok(json.error.message);
});
