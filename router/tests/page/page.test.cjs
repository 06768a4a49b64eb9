// The admin page in a real browser, before the real router and two tiny engines.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after, before, test } = require('node:test');
const { launch } = require('./browser.cjs');
const { startEngine, sleep } = require('./engine.cjs');
const { startRouter } = require('./router.cjs');

const WAIT_MS_MAX = 20_000;

const shots = process.env.CGN_SHOTS ?? fs.mkdtempSync(path.join(os.tmpdir(), 'cgn-page-'));
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cgn-page-router-'));
const complaints = [];
const elsewhere = [];
let engines;
let router;
let browser;
let page;

before(async () => {
  engines = [await startEngine(), await startEngine()];
  router = await startRouter(folder, engines, 4);
  browser = await launch();
  page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: 'dark', reducedMotion: 'reduce' });
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('request', (request) => {
    const url = new URL(request.url());
    if (url.protocol !== 'data:' && url.origin !== router.admin) elsewhere.push(request.url());
  });
  await page.goto(`${router.admin}/`);
  await shows('#state', /^serving$/);
});

after(async () => {
  await browser?.close();
  await router?.stop();
  await Promise.all((engines ?? []).map((engine) => engine.stop()));
  fs.rmSync(folder, { recursive: true, force: true });
  if (!process.env.CGN_SHOTS) fs.rmSync(shots, { recursive: true, force: true });
});

/** Waits until the text at `selector` matches; the text. */
async function shows(selector, pattern) {
  await page.waitForFunction(
    ([where, source]) => new RegExp(source).test(document.querySelector(where)?.textContent ?? ''),
    [selector, pattern.source],
    { timeout: WAIT_MS_MAX },
  ).catch(async () => {
    assert.fail(`${selector} is ${JSON.stringify(await page.locator(selector).allTextContents())}, not ${pattern}`);
  });
  return page.textContent(selector);
}

/** The row of an engine. A worker of a static list is called by its URL. */
function rowOf(engine) {
  return `#workers tbody tr[data-key*="${new URL(engine.url).host}"]`;
}

const chats = (count, text) => Promise.all(Array.from({ length: count }, (_, at) => router.chat(`${text} ${at}`)));

test('an idle router: each worker has a row, and what is not known is not zero', async () => {
  assert.equal(await page.locator('#workers tbody tr').count(), 2);
  for (const engine of engines) {
    await shows(`${rowOf(engine)} td:nth-of-type(3)`, /ready/);
    await shows(`${rowOf(engine)} [role=meter] .text`, /^0 \/ 4$/);
    assert.equal(await page.textContent(`${rowOf(engine)} td:nth-of-type(8)`), '–', 'no watts are reported');
  }
  await shows('#workers-sum', /^2 of 2 ready$/);
  assert.equal(await page.textContent('#hit'), '–');
  assert.equal(await page.textContent('#ttft-50'), '–');
  await shows('#requests', /^0$/);
  await shows('#models tbody th', /^m$/);
});

test('under load the bars fill, and empty again', async () => {
  engines.forEach((engine) => engine.hold());
  const running = chats(6, 'held');
  await shows('#running', /^6$/);
  const bars = await page.locator('#workers .meter:not(.calm) .bar').evaluateAll((all) => all.map((bar) => parseFloat(bar.style.width)));
  assert.equal(bars.reduce((sum, width) => sum + width, 0), 150, `six of eight slots: ${bars}`);
  await page.screenshot({ path: path.join(shots, 'load.png'), fullPage: true });
  engines.forEach((engine) => engine.release());
  for (const answer of await running) assert.equal(answer.status, 200);
  await shows('#running', /^0$/);
  for (const engine of engines) await shows(`${rowOf(engine)} [role=meter] .text`, /^0 \/ 4$/);
});

test('hit ratio, tokens and time to first token appear and change with load', async () => {
  await chats(8, 'fast');
  await shows('#hit', /^75 %$/);
  await shows('#requests', /^[0-9.]*[1-9][0-9.]*$/);
  await shows('#tokens', /^[0-9.]*[1-9][0-9.]*$/);
  const early = await shows('#ttft-50', /ms$|s$/);
  engines.forEach((engine) => engine.slowDown(1200));
  await chats(40, 'slow');
  await page.waitForFunction((was) => document.querySelector('#ttft-50').textContent !== was, early, { timeout: WAIT_MS_MAX });
  await shows('#ttft-99', / s$/);
  await shows('#itl-50', /s$/);
  engines.forEach((engine) => engine.slowDown(5));
  await page.waitForFunction(() => document.querySelector('#spark-ttft path:last-child').getAttribute('d').includes('L'), null, { timeout: WAIT_MS_MAX });
  assert.match(await page.getAttribute('#spark-hit svg', 'aria-label'), /75 %/);
});

test('a refusal is counted under its reason', async () => {
  const answer = await fetch(`${router.base}/v1/chat/completions`, { method: 'POST', body: '{"model":"nobody","messages":[]}' });
  assert.equal(answer.status, 404);
  await shows('#refusals tbody tr[data-key=model_not_found] td', /^1$/);
  await shows('#refused-sub', /most: model not found/);
});

test('a killed engine is not ready, is said aloud and is still listed', async () => {
  await engines[1].stop();
  await shows(`${rowOf(engines[1])} td:nth-of-type(3)`, /not ready/);
  await shows('#news', /is not ready/);
  await shows('#workers-sum', /^1 of 2 ready$/);
  await shows('#state', /^serving$/);
  await shows('#models tbody td', /^1 \/ 2$/);
  await page.screenshot({ path: path.join(shots, 'dark.png'), fullPage: true });
});

test('the page is readable on a phone, in light, and its tables have headers', async () => {
  await page.emulateMedia({ colorScheme: 'light' });
  await page.screenshot({ path: path.join(shots, 'light.png'), fullPage: true });
  await page.setViewportSize({ width: 390, height: 844 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(wide <= 0, `${wide} px too wide`);
  await page.screenshot({ path: path.join(shots, 'phone.png'), fullPage: true });
  await page.setViewportSize({ width: 1280, height: 900 });
  for (const id of ['workers', 'models', 'tenants', 'refusals']) {
    const columns = await page.locator(`#${id} thead th[scope=col]`).count();
    assert.ok(columns >= 3 && columns === await page.locator(`#${id} thead th`).count());
  }
  assert.equal(await page.locator('#workers tbody th[scope=row]').count(), 2);
  assert.equal(await page.getAttribute('#state', 'aria-live'), 'polite');
});

test('the page rests while nobody looks', async () => {
  const hide = (hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { value, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  await hide(true);
  await sleep(300);
  let asked = 0;
  const count = () => { asked += 1; };
  page.on('request', count);
  await sleep(2500);
  assert.equal(asked, 0);
  const again = page.waitForRequest(/status\.json/, { timeout: WAIT_MS_MAX });
  await hide(false);
  await again;
  page.off('request', count);
});

test('the policy forbids everything from elsewhere, and nothing asked for it', async () => {
  const answer = await fetch(`${router.admin}/`);
  assert.match(answer.headers.get('content-security-policy'), /default-src 'none'/);
  assert.equal(answer.headers.get('x-content-type-options'), 'nosniff');
  assert.deepEqual(elsewhere, []);
  assert.deepEqual(complaints, []);
});

test('clients of the API find no page', async () => {
  for (const there of ['/', '/app.js', '/status.json']) {
    assert.equal((await fetch(router.base + there)).status, 404, there);
  }
});

test('a router that goes away is said to be gone since when', async () => {
  await router.stop();
  await shows('#state', /^not reachable since \d\d:\d\d:\d\d$/);
  const first = await page.textContent('#state');
  await sleep(2500);
  assert.equal(await page.textContent('#state'), first, 'the time is that of the first failure');
  await page.screenshot({ path: path.join(shots, 'gone.png'), fullPage: true });
});
