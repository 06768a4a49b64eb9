// A tiny OpenAI engine: streams three tokens and says its usage. Requests can be held, so that a test
// sees them in flight.
'use strict';

const http = require('node:http');

/** Starts an engine on a free port. `held` answers nothing until `release()`. */
async function startEngine() {
  let gate = Promise.resolve();
  let open = () => {};
  let firstTokenMs = 5;
  const server = http.createServer(async (request, response) => {
    request.resume();
    if (request.method === 'GET') return response.end('{"status":"ok"}');
    await new Promise((done) => request.on('end', done));
    await gate;
    await sleep(firstTokenMs);
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (const content of ['one', ' two', ' three']) {
      response.write(event({ choices: [{ index: 0, delta: { content }, finish_reason: null }] }));
      await sleep(5);
    }
    response.write(event({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] }));
    const usage = { prompt_tokens: 100, completion_tokens: 3, total_tokens: 103, prompt_tokens_details: { cached_tokens: 75 } };
    response.end(`${event({ choices: [], usage })}data: [DONE]\n\n`);
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    hold() {
      gate = new Promise((done) => { open = done; });
    },
    release() {
      open();
    },
    slowDown(ms) {
      firstTokenMs = ms;
    },
    stop() {
      open();
      server.closeAllConnections();
      return new Promise((done) => server.close(done));
    },
  };
}

function event(fields) {
  return `data: ${JSON.stringify({ id: 'c', object: 'chat.completion.chunk', created: 0, model: 'm', ...fields })}\n\n`;
}

function sleep(ms) {
  return new Promise((done) => { setTimeout(done, ms); });
}

module.exports = { startEngine, sleep };
