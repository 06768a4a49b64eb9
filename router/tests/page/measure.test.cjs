// What the page computes, without a browser.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { before, test } = require('node:test');

let m;
before(async () => {
  const source = fs.readFileSync(path.join(__dirname, '../../src/page/measure.js'), 'utf8');
  m = await import(`data:text/javascript,${encodeURIComponent(source)}`);
});

const bounds = [0.1, 0.2, 0.4];
const status = (uptime_s, counts, more) => ({
  uptime_s,
  totals: { requests: counts.at(-1), prompt_tokens: 0, cached_tokens: 0, time_to_first_token: { bounds_s: bounds, counts }, ...more },
});

test('a quantile is linear within its bucket and counts only what came in between', () => {
  assert.equal(m.quantile(null, [0, 10, 10, 10], bounds, 0.5), 0.1 + 0.1 * 0.5);
  assert.equal(m.quantile([0, 10, 10, 10], [10, 20, 20, 20], bounds, 0.5), 0.05);
  assert.equal(m.quantile([5, 5, 5, 5], [5, 5, 5, 5], bounds, 0.5), null);
});

test('what lies beyond the last bound is given as that bound', () => {
  assert.equal(m.quantile(null, [0, 0, 0, 3], bounds, 0.99), 0.4);
});

test('quantiles rise with q and stay within the bounds', () => {
  let seed = 7;
  const random = (n) => { seed = (seed * 48271) % 2147483647; return seed % n; };
  for (let round = 0; round < 500; round += 1) {
    const counts = [];
    for (let at = 0, sum = 0; at < 4; at += 1) counts.push(sum += random(9));
    const all = [0.01, 0.25, 0.5, 0.9, 0.99, 1].map((q) => m.quantile(null, counts, bounds, q));
    if (counts.at(-1) === 0) assert.deepEqual(new Set(all), new Set([null]));
    else all.forEach((value, at) => assert.ok(value >= 0 && value <= 0.4 && (at === 0 || value >= all[at - 1]), `${counts} ${all}`));
  }
});

test('rates use the time of the router and the window asked for', () => {
  const samples = [];
  for (let s = 0; s <= 100; s += 1) m.remember(samples, status(s, [0, 0, 0, s < 50 ? 0 : (s - 50) * 4]));
  assert.equal(m.rate(samples, samples.length - 1, 10, (t) => t.requests), 4);
  assert.equal(m.rate(samples, samples.length - 1, 100, (t) => t.requests), 2);
  assert.equal(m.rate(samples, 0, 10, (t) => t.requests), null);
});

test('samples are bounded, and a restarted router begins a new history', () => {
  const samples = [];
  for (let s = 0; s < 1000; s += 1) m.remember(samples, status(s, [0, 0, 0, s]));
  assert.ok(samples.length <= m.KEEP_S + 1);
  m.remember(samples, status(3, [0, 0, 0, 1]));
  assert.equal(samples.length, 1);
  m.remember(samples, status(3, [0, 0, 0, 1]));
  assert.equal(samples.length, 1, 'the same moment twice is one sample');
});

test('a hit ratio needs prompts', () => {
  const samples = [];
  m.remember(samples, status(1, [0, 0, 0, 0], { prompt_tokens: 0, cached_tokens: 0 }));
  assert.equal(m.hitRatio(samples, 0, 60), null);
  m.remember(samples, status(2, [0, 0, 0, 0], { prompt_tokens: 200, cached_tokens: 50 }));
  assert.equal(m.hitRatio(samples, 1, 60), 0.25);
});

test('figures are words that fit a tile', () => {
  assert.deepEqual([0, 3, 0.5, 12.34, 1234, 56789, 7.1e6, null].map(m.number), ['0', '3', '0.50', '12.3', '1234', '56.8 k', '7.10 M', '–']);
  assert.deepEqual([null, 0.0000042, 0.0042, 0.042, 0.9999, 1.5, 42].map(m.seconds), ['–', '4 µs', '4.2 ms', '42 ms', '1.00 s', '1.50 s', '42 s']);
  assert.deepEqual([null, 0, 0.051, 0.75, 1].map(m.percent), ['–', '0 %', '5.1 %', '75 %', '100 %']);
  assert.deepEqual([5, 65, 3700, 90000].map(m.duration), ['5 s', '1 min 5 s', '1 h 1 min', '1 d 1 h']);
});
