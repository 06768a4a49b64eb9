// The shipped router as a process on free ports. `CGN_ROUTER` is its path.
'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { sleep } = require('./engine.cjs');

const READY_MS_MAX = 20_000;

function environment(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; run: cargo xtask test --only page`);
  return value;
}

/** Starts the router before `engines`, one worker each of model `m`, and waits until it is ready. */
async function startRouter(folder, engines, slots) {
  const workers = engines.map((engine) => `[[workers]]\nurl = "${engine.url}"\nmodel = "m"\nkind = "openai_compat"\nslots = ${slots}\nkv_cache_tokens = 8192\n`);
  const limits = '[router.limits]\nprobe_interval_ms = 100\nprobe_timeout_ms = 1000\n';
  const config = path.join(folder, 'router.toml');
  fs.writeFileSync(config, `[router]\nlisten_http = "127.0.0.1:0"\nlisten_admin = "127.0.0.1:0"\ncores = 1\n${limits}${workers.join('')}`);
  const child = spawn(environment('CGN_ROUTER'), ['--config', config], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise((done) => { child.once('exit', done); });
  const line = await new Promise((done, failed) => {
    child.stdout.once('data', (data) => done(String(data)));
    child.once('exit', (code) => failed(new Error(`the router ended with ${code}`)));
  });
  const [base, admin] = [...line.matchAll(/http:\/\/[^\s)]+/g)].map(([url]) => url);
  const deadline = Date.now() + READY_MS_MAX;
  while (!(await fetch(`${admin}/readyz`)).ok) {
    if (Date.now() > deadline) throw new Error('the router does not get ready');
    await sleep(20);
  }
  return {
    base,
    admin,
    /** Sends one streamed chat and reads its answer to the end. */
    async chat(text) {
      const answer = await fetch(`${base}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'm', stream: true, stream_options: { include_usage: true }, messages: [{ role: 'user', content: text }] }),
      });
      return { status: answer.status, text: await answer.text() };
    },
    stop() {
      child.kill('SIGKILL');
      return ended;
    },
  };
}

module.exports = { environment, startRouter };
