// The admin page over made-up figures: every state, long histories, hostile names, odd answers.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after, before, beforeEach, test } = require('node:test');
const { startEngine } = require('./engine.cjs');
const { launch } = require('./browser.cjs');
const { startRouter } = require('./router.cjs');
const { status } = require('./figures.cjs');

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cgn-page-figures-'));
const complaints = [];
let engine;
let router;
let browser;
let page;
// What `/status.json` answers, by the number of the question.
let answer;

before(async () => {
  engine = await startEngine();
  router = await startRouter(folder, [engine], 4);
  browser = await launch();
});

beforeEach(async () => {
  await page?.close();
  page = await browser.newPage({ viewport: { width: 1280, height: 1000 }, colorScheme: 'dark', reducedMotion: 'reduce' });
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('dialog', (dialog) => {
    complaints.push(dialog.message());
    dialog.dismiss();
  });
  await page.clock.install();
  let asked = 0;
  await page.route('**/status.json', (route) => {
    const body = answer(asked);
    asked += 1;
    return route.fulfill(typeof body === 'string' ? { body } : { json: body });
  });
});

after(async () => {
  await browser?.close();
  await router?.stop();
  await engine?.stop();
  fs.rmSync(folder, { recursive: true, force: true });
});

/** Opens the page and lets it ask `times` times, a second of the page's clock each. */
async function open(times) {
  await page.goto(`${router.admin}/`);
  for (let at = 1; at < times; at += 1) {
    await page.clock.runFor(1000);
    await page.evaluate(() => fetch('/app.css'));
  }
}

const shot = (name) => process.env.CGN_SHOTS && page.screenshot({ path: path.join(process.env.CGN_SHOTS, name), fullPage: true });
const texts = (selector) => page.locator(selector).allTextContents();

test('every state has its word, and a bad one marks its row', async () => {
  answer = (at) => status(300 + at);
  await open(125);
  const rows = page.locator('#workers tbody tr');
  assert.deepEqual((await texts('#workers .mark')).map((words) => words.replace('\u00a0', ' ')), ['● ready', '● ready', '◐ draining', '✕ not ready', '✕ breaker open', '◐ breaker half open']);
  assert.deepEqual(await rows.evaluateAll((all) => all.map((row) => row.className)), ['', '', '', 'lost', 'lost', '']);
  assert.deepEqual(await texts('#workers tbody td:last-child'), ['412 W', '413 W', '414 W', '415 W', '–', '–']);
  assert.equal(await page.textContent('#power'), '1656 W');
  assert.deepEqual(await texts('#tenants tbody tr:first-child .text'), ['30 / 32', '600 / 600', '1.25 M / 2 M']);
  assert.deepEqual(await texts('#tenants tbody tr:last-child .text'), ['7', '84', '90 k / 500 k']);
  assert.equal(await page.locator('#tenants .full').count(), 1, 'one limit is reached');
  assert.equal(await page.textContent('#hit'), '72 %');
  assert.equal(await page.textContent('#queued'), '5');
  assert.equal(await page.textContent('#refused'), '15');
  const cut = await page.locator('.scroll').evaluateAll((all) => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent));
  assert.deepEqual(cut, [], 'no table is cut off');
  await shot('busy.png');
  await page.setViewportSize({ width: 390, height: 844 });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth));
  await shot('busy-phone.png');
});

test('the history in the page is bounded by two minutes', async () => {
  answer = (at) => status(300 + at);
  await open(150);
  const points = (await page.getAttribute('#spark-requests path:last-child', 'd')).split(/[ML]/).length;
  assert.ok(points > 100 && points <= 125, `${points} points`);
});

test('a hostile name is text', async () => {
  answer = (at) => status(300 + at);
  await open(2);
  assert.equal(await page.locator('#workers img').count(), 0);
  assert.ok((await texts('#workers tbody th span:first-child')).includes('<img src=x onerror=alert(1)>'));
});

test('five hundred workers are drawn, and rows come and go with their workers', async () => {
  answer = (at) => ({ ...status(300 + at, at < 3 ? 500 : 2), workers_total: at < 3 ? 700 : 2 });
  await open(2);
  assert.equal(await page.locator('#workers tbody tr').count(), 500);
  assert.match(await page.textContent('#workers-sum'), /^500 of 700/);
  await page.clock.runFor(4000);
  await page.waitForFunction(() => document.querySelectorAll('#workers tbody tr').length === 2);
});

test('an answer that is no status counts as not reachable, and the next good one heals it', async () => {
  answer = (at) => (at === 1 ? '<html>a proxy</html>' : status(300 + at));
  await open(2);
  await page.waitForFunction(() => document.querySelector('#state').textContent.startsWith('not reachable since'));
  await page.clock.runFor(1100);
  await page.waitForFunction(() => document.querySelector('#state').textContent === 'serving');
  assert.equal(await page.locator('body.stale').count(), 0);
});

test('draining and no ready worker are said in words', async () => {
  answer = (at) => ({ ...status(300 + at), draining: true });
  await open(2);
  assert.equal(await page.textContent('#state'), 'draining');
  answer = (at) => ({ ...status(300 + at), workers: [], workers_total: 0 });
  await page.clock.runFor(1100);
  await page.waitForFunction(() => document.querySelector('#state').textContent === 'no worker is ready');
  assert.deepEqual(await texts('#workers tbody td'), ['no workers known']);
});

test('nothing was complained of', () => assert.deepEqual(complaints, []));
