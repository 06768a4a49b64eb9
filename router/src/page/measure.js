// What the admin page computes from /status.json: rates, quantiles, words. Pure: no page, no clock.
// A sample is one status; its time is the router's own `uptime_s`, so a slow network bends no rate.

// Seconds of samples that are kept: the curves show two minutes.
export const KEEP_S = 121;
// Seconds that "the last minute" is.
export const WINDOW_S = 60;

// Adds a status. A router that restarted (its time or a counter fell) begins a new history.
export function remember(samples, status) {
  const last = samples.at(-1);
  if (last && (status.uptime_s < last.uptime_s || status.totals.requests < last.totals.requests)) samples.length = 0;
  if (last && status.uptime_s === last.uptime_s) samples.pop();
  samples.push({ uptime_s: status.uptime_s, totals: status.totals });
  while (samples[0].uptime_s < status.uptime_s - KEEP_S) samples.shift();
}

// The youngest sample at least `seconds` older than sample `at`, else the oldest there is.
export function before(samples, at, seconds) {
  let index = at;
  while (index > 0 && samples[at].uptime_s - samples[index].uptime_s < seconds - 0.2) index -= 1;
  return samples[index];
}

// How much `read(totals)` rises each second over the last `seconds`; null without two samples.
export function rate(samples, at, seconds, read) {
  const new_ = samples[at], old = before(samples, at, seconds);
  const passed = new_.uptime_s - old.uptime_s;
  return passed > 0 ? (read(new_.totals) - read(old.totals)) / passed : null;
}

// The quantile `q` of what was observed between two cumulative counts, in seconds. Linear within a
// bucket, as Prometheus does it; what lies beyond the last bound is given as that bound. null: nothing.
export function quantile(old, now, bounds, q) {
  const risen = now.map((count, index) => count - (old?.[index] ?? 0));
  const total = risen.at(-1);
  if (!(total > 0)) return null;
  const rank = q * total;
  const index = risen.findIndex((count) => count >= rank && count > 0);
  if (index < 0 || index >= bounds.length) return bounds.at(-1) ?? null;
  const below = index > 0 ? risen[index - 1] : 0;
  const from = index > 0 ? bounds[index - 1] : 0;
  return from + (bounds[index] - from) * ((rank - below) / (risen[index] - below || 1));
}

// The quantile of histogram `name` over the last `seconds` up to sample `at`.
export function quantileOver(samples, at, seconds, name, q) {
  const now = samples[at].totals[name];
  return quantile(before(samples, at, seconds).totals[name].counts, now.counts, now.bounds_s, q);
}

// Cached share of the prompt tokens over the last `seconds` up to sample `at`; null without prompts.
export function hitRatio(samples, at, seconds) {
  const now = samples[at].totals, old = before(samples, at, seconds).totals;
  return share(now.cached_tokens - old.cached_tokens, now.prompt_tokens - old.prompt_tokens);
}

// `part` of `whole`, at most 1; null of nothing.
export function share(part, whole) {
  return whole > 0 ? Math.min(1, Math.max(0, part / whole)) : null;
}

// Points [seconds before now, value or null] of a curve.
export function curve(samples, value) {
  const now = samples.at(-1)?.uptime_s ?? 0;
  return samples.map((sample, at) => [now - sample.uptime_s, value(at)]).slice(1);
}

// A person's words for figures. Three digits are enough; "–" is "not known".
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  for (const [limit, unit] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) {
    if (Math.abs(value) >= limit) return digits(value / (limit === 1e4 ? 1e3 : limit)) + unit;
  }
  return digits(value);
}
const digits = (value) => (Number.isInteger(value) || Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 2));
export function percent(value) {
  return value === null ? "–" : `${(value * 100).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;
}
export function seconds(value) {
  if (value === null) return "–";
  if (value < 9.995e-4) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.9995) return `${(value * 1e3).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 0)} s`;
}
export function duration(s) {
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${Math.floor(s % 60)} s` : `${Math.floor(s)} s`;
}
