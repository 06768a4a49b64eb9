// Before llama-server with SmolLM2.
'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');

const { client, model } = require('./router.cjs');

const messages = [
  { role: 'user', content: 'What is the capital city of France? Answer in one sentence.' },
];

test('the streaming runner assembles a sensible answer', async () => {
  const runner = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 32 });
  assert.match(await runner.finalContent(), /Paris/);
});

test('a JSON schema is obeyed and vendor fields pass', async () => {
  const schema = {
    type: 'object',
    properties: { rank: { enum: [1, 2, 3] } },
    required: ['rank'],
    additionalProperties: false,
  };
  const response_format = { type: 'json_schema', json_schema: { name: 'c', schema } };
  const call = { model, messages, max_tokens: 32, response_format, cache_prompt: false, x_unknown: [1] };
  const answer = await client.chat.completions.create(call);
  assert.ok([1, 2, 3].includes(JSON.parse(answer.choices[0].message.content).rank));
  assert.equal(answer.timings.cache_n, 0);
});

test('embeddings are refused with the reason', async () => {
  await assert.rejects(
    () => client.embeddings.create({ model, input: 'hello' }),
    (error) => {
      assert.ok(error.status >= 400 && error.status < 500);
      assert.ok(error.message.includes(model) && error.message.includes('embeddings'));
      return true;
    },
  );
});
