// Where the router and the model are: `cargo xtask test` says it by environment.
'use strict';

const OpenAI = require('openai');

function environment(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; run: cargo xtask test --only sdk-node`);
  return value;
}

const baseURL = environment('CGN_BASE_URL');

module.exports = {
  OpenAI,
  baseURL,
  model: environment('CGN_MODEL'),
  // No retries: each answer is the first answer.
  client: new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: 'none', maxRetries: 0, timeout: 120_000 }),
  hello: [{ role: 'user', content: 'Say hello in one short sentence.' }],
};
