// A made-up cluster in every state a page may meet: what a test router cannot bring about by itself.
'use strict';

const BOUNDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2];

/** The status at second `s` of a router with `workers` workers. */
function status(s, workers = 6) {
  const states = ['ready', 'ready', 'draining', 'not_ready', 'breaker_open', 'breaker_half_open'];
  const wave = Math.round(s * 42 + 60 * Math.sin(s / 9));
  const counts = [0.05, 0.1, 0.3, 0.6, 0.85, 0.96, 0.99, 1, 1].map((part) => Math.round(wave * part));
  return {
    version: '0.1.0',
    uptime_s: s,
    draining: false,
    totals: {
      requests: wave,
      running: 37,
      queued: 5,
      refusals: { busy: Math.round(s / 4), model_not_found: 3 },
      prompt_tokens: wave * 900,
      cached_tokens: Math.round(wave * 900 * 0.72),
      completion_tokens: wave * 180,
      time_to_first_token: { bounds_s: BOUNDS, counts },
      inter_token_latency: { bounds_s: BOUNDS, counts: counts.map((count) => count * 180) },
    },
    models: [
      { name: 'llama-3.3-70b-instruct', workers_ready: 2, workers: 5, inflight: 37, slots: 96, queued: 5 },
      { name: 'bge-m3', workers_ready: 0, workers: 1, inflight: 0, slots: 16, queued: 0 },
    ],
    workers: Array.from({ length: workers }, (_, at) => ({
      id: at === 1 ? '<img src=x onerror=alert(1)>' : `node-${at}/llama-70b/${at % 2}`,
      model: at === 5 ? 'bge-m3' : 'llama-3.3-70b-instruct',
      kind: at % 2 ? 'vllm' : 'sglang',
      state: states[at % states.length],
      inflight: [16, 12, 9, 0, 0, 1][at % 6],
      slots: 16,
      cache_blocks: 28_412 + at,
      cache_free_share: [0.04, 0.31, 0.5, 1, 1, 0.8][at % 6],
      picks: Math.round(wave / 6),
      power_watts: at % 6 < 4 ? 412.4 + at : null,
    })),
    tenants: [
      { name: 'acme', running: 30, running_max: 32, requests_per_minute: 600, requests_per_minute_max: 600, tokens_per_minute: 1_250_000, tokens_per_minute_max: 2_000_000 },
      { name: 'research', running: 7, running_max: null, requests_per_minute: 84, requests_per_minute_max: null, tokens_per_minute: 90_000, tokens_per_minute_max: 500_000 },
    ],
    power_watts: 1655.6,
    workers_total: workers,
    models_total: 2,
    tenants_total: 2,
  };
}

module.exports = { status };
