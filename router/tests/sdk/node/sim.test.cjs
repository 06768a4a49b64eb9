// Before the simulated engine: the endpoints and shapes a small real model does not have.
'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');

const { client, hello, model } = require('./router.cjs');

const tools = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];

test('embeddings of one and of many', async () => {
  const one = await client.embeddings.create({ model, input: 'hello' });
  const many = await client.embeddings.create({ model, input: ['hello', 'world'] });
  assert.equal(many.data.length, 2);
  assert.deepEqual(many.data[0].embedding, one.data[0].embedding);
});

test('tool calls pass, whole and streamed', async () => {
  const call = { model, messages: hello, tools, tool_choice: 'required', max_tokens: 256 };
  const answer = await client.chat.completions.create(call);
  const [whole] = answer.choices[0].message.tool_calls;
  assert.equal(whole.function.name, 'get_weather');
  assert.ok('city' in JSON.parse(whole.function.arguments));
  let text = '';
  for await (const chunk of await client.chat.completions.create({ ...call, stream: true })) {
    text += chunk.choices[0]?.delta?.tool_calls?.[0]?.function?.arguments ?? '';
  }
  assert.ok('city' in JSON.parse(text));
});

test('several choices pass', async () => {
  const answer = await client.chat.completions.create({ model, messages: hello, max_tokens: 4, n: 3 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
});
