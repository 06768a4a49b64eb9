// The admin page: asks /status.json each second while somebody looks, and draws what came.
// Text is set as text, never as markup; only what changed is touched.
import * as m from "./measure.js";

const POLL_MS = 1000;
const ANSWER_MS_MAX = 4000;
const SVG = "http://www.w3.org/2000/svg";
const WORDS = { ready: "●\u00a0ready", draining: "◐\u00a0draining", not_ready: "✕\u00a0not ready", breaker_open: "✕\u00a0breaker open", breaker_half_open: "◐\u00a0breaker half open" };
const ROWS_EMPTY = { workers: "no workers known", models: "no models known", tenants: "no tenants: identity is off or nobody came yet", refusals: "none" };

const samples = [];
const states = new Map();
let lostSince = null;
let timer = 0;
let asking = false;

const by = (id) => document.getElementById(id);
function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}
function name(node, value) {
  if (node.className !== value) node.className = value;
}
function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// A bar with its figures. `of` null: no limit is known and only the figure is shown.
function meter(node, value, of, words, label, kind) {
  let inner = node.firstChild;
  if (!inner) {
    inner = make("div", "meter", make("div", "track", make("div", "bar")), make("span", "text"));
    inner.setAttribute("role", "meter");
    inner.setAttribute("aria-label", label);
    inner.setAttribute("aria-valuemin", "0");
    node.append(inner);
  }
  const part = of ? Math.min(1, value / of) : 0;
  const [track, words_] = inner.children;
  track.hidden = !of;
  track.firstChild.style.width = `${(part * 100).toFixed(1)}%`;
  name(inner, `meter ${kind ?? (of && value >= of ? "full" : "")}`);
  inner.setAttribute("aria-valuenow", String(value));
  inner.setAttribute("aria-valuemax", String(of || Math.max(1, value)));
  inner.setAttribute("aria-valuetext", words);
  text(words_, words);
}

// Rows by key: made once, updated in place, taken out when gone, in the order given.
function rows(id, items, key, build, update) {
  const body = by(id).tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, at) => {
    const wanted = key(item);
    let row = old.get(wanted);
    if (!row) {
      row = build(item);
      row.dataset.key = wanted;
    }
    old.delete(wanted);
    update(row, item);
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  old.forEach((row) => row.remove());
  if (items.length === 0) {
    const cell = make("td", "none", ROWS_EMPTY[id]);
    cell.colSpan = by(id).tHead.rows[0].cells.length;
    const row = make("tr", "", cell);
    row.dataset.key = "";
    body.append(row);
  }
}
function row(...classes) {
  const made = make("tr", "", ...classes.map((one, at) => make(at === 0 ? "th" : "td", one)));
  made.cells[0].scope = "row";
  return made;
}

function drawWorkers(status) {
  rows("workers", status.workers, (w) => w.id, () => {
    const made = row("", "wide", "wide", "", "", "", "num wide", "num wide", "num wide");
    made.cells[0].append(make("span"), make("span", "under"));
    made.cells[3].append(make("span"));
    return made;
  }, (made, w) => {
    const c = made.cells;
    text(c[0].children[0], w.id);
    const watts = w.power_watts === null ? "–" : `${m.number(Math.round(w.power_watts))} W`;
    text(c[0].children[1], `${w.model} · ${w.kind}${w.power_watts === null ? "" : ` · ${watts}`}`);
    text(c[1], w.model);
    text(c[2], w.kind);
    text(c[3].firstChild, WORDS[w.state] ?? w.state);
    name(c[3].firstChild, `mark ${w.state}`);
    name(made, w.state === "not_ready" || w.state === "breaker_open" ? "lost" : "");
    meter(c[4], w.inflight, w.slots, `${w.inflight} / ${w.slots}`, "in flight");
    const free = Math.round(w.cache_free_share * 100);
    meter(c[5], free, 100, `${free} %`, "KV cache free", "calm");
    text(c[6], w.cache_blocks.toLocaleString("en"));
    text(c[7], w.picks.toLocaleString("en"));
    text(c[8], watts);
  });
  const ready = status.workers.filter((w) => w.state === "ready").length;
  const more = status.workers_total - status.workers.length;
  text(by("workers-sum"), more > 0 ? `${status.workers.length} of ${status.workers_total}, those in trouble first` : `${ready} of ${status.workers_total} ready`);
  tell(status.workers);
}

// Says changes of state aloud, each once.
function tell(workers) {
  const news = workers.filter((w) => states.has(w.id) && states.get(w.id) !== w.state);
  if (news.length) text(by("news"), news.slice(0, 5).map((w) => `${w.id} is ${WORDS[w.state].slice(2)}`).join(", "));
  states.clear();
  workers.forEach((w) => states.set(w.id, w.state));
}

function drawModels(status) {
  rows("models", status.models, (x) => x.name, () => row("", "num", "", "num"), (made, x) => {
    text(made.cells[0], x.name);
    text(made.cells[1], `${x.workers_ready} / ${x.workers}`);
    name(made, x.workers_ready === 0 ? "lost" : "");
    meter(made.cells[2], x.inflight, x.slots, `${x.inflight} / ${x.slots}`, "in flight");
    text(made.cells[3], m.number(x.queued));
  });
  rest("models", status.models, status.models_total);
}

function drawTenants(status) {
  const use = (cell, value, most, label) => meter(cell, value, most, most === null ? m.number(value) : `${m.number(value)} / ${m.number(most)}`, label);
  rows("tenants", status.tenants, (t) => t.name, () => row("", "", "", ""), (made, t) => {
    text(made.cells[0], t.name);
    use(made.cells[1], t.running, t.running_max, "running");
    use(made.cells[2], t.requests_per_minute, t.requests_per_minute_max, "requests per minute");
    use(made.cells[3], t.tokens_per_minute, t.tokens_per_minute_max, "tokens per minute");
  });
  rest("tenants", status.tenants, status.tenants_total);
}
function rest(id, shown, total) {
  text(by(`${id}-sum`), total > shown.length ? `${shown.length} of ${total}` : "");
}

function drawRefusals(now, old) {
  const risen = ([reason, count]) => count - (old.refusals[reason] ?? 0);
  const all = Object.entries(now.refusals).sort((a, b) => risen(b) - risen(a) || b[1] - a[1]);
  rows("refusals", all, (one) => one[0], () => row("", "num", "num"), (made, one) => {
    text(made.cells[0], one[0].replaceAll("_", " "));
    text(made.cells[1], m.number(risen(one)));
    text(made.cells[2], one[1].toLocaleString("en"));
  });
  const sum = all.reduce((total, one) => total + risen(one), 0);
  text(by("refused"), m.number(sum));
  name(by("refused").parentNode, sum > 0 ? "big alarm" : "big");
  text(by("refused-sub"), sum > 0 ? `most: ${all[0][0].replaceAll("_", " ")}` : "in the last minute");
}

// Two minutes from left to right. `most` fixes the top, else the highest point is the top.
function spark(id, points, words, most) {
  const known = points.filter(([, value]) => value !== null);
  const top = most ?? Math.max(...known.map(([, value]) => value), 1e-9);
  const place = ([ago, value]) => `${((1 - ago / (m.KEEP_S - 1)) * 240).toFixed(1)},${(39 - (value / top) * 37).toFixed(1)}`;
  const parts = [];
  points.forEach((point, at) => {
    if (point[1] === null) return;
    if (at === 0 || points[at - 1][1] === null) parts.push([]);
    parts.at(-1).push(place(point));
  });
  const line = parts.map((part) => `M${part.join("L")}${part.length === 1 ? "h1" : ""}`).join("");
  const foot = (point) => `${point.split(",")[0]},40`;
  const area = parts.map((part) => `M${foot(part[0])}L${part.join("L")}L${foot(part.at(-1))}Z`).join("");
  let svg = by(id).querySelector("svg");
  if (!svg) {
    svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 240 40");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    for (const [tag, set] of [["line", { x1: 0, x2: 240, y1: 39.5, y2: 39.5 }], ["path", { class: "area" }], ["path", {}]]) {
      const node = document.createElementNS(SVG, tag);
      Object.entries(set).forEach(([key, value]) => node.setAttribute(key, value));
      svg.append(node);
    }
    by(id).append(svg, make("span", "top"));
  }
  text(by(id).lastChild, top > 1e-9 && known.length ? `top ${words(top)}` : "\u00a0");
  svg.setAttribute("aria-label", known.length ? `last two minutes, ${words(known.at(-1)[1])} now, at most ${words(Math.max(...known.map((p) => p[1])))}` : "nothing yet");
  svg.children[1].setAttribute("d", area);
  svg.children[2].setAttribute("d", line);
}

function drawTotals(status) {
  const now = status.totals, at = samples.length - 1, old = m.before(samples, at, m.WINDOW_S).totals;
  const perSecond = (read, over = 10) => m.rate(samples, at, over, read);
  const pair = (id, key) => [0.5, 0.99].forEach((q) => text(by(`${id}-${q * 100}`), m.seconds(m.quantileOver(samples, at, m.WINDOW_S, key, q))));
  const ever = (key, q) => m.seconds(m.quantile(null, now[key].counts, now[key].bounds_s, q));
  text(by("requests"), m.number(perSecond((t) => t.requests)));
  text(by("requests-sub"), `${now.requests.toLocaleString("en")} since start`);
  text(by("running"), m.number(now.running));
  text(by("queued"), m.number(now.queued));
  text(by("tokens"), m.number(perSecond((t) => t.completion_tokens)));
  text(by("tokens-sub"), `${m.number(perSecond((t) => t.prompt_tokens))} /s read`);
  pair("ttft", "time_to_first_token");
  pair("itl", "inter_token_latency");
  text(by("ttft-sub"), `p50 ${ever("time_to_first_token", 0.5)}, p99 ${ever("time_to_first_token", 0.99)} since start`);
  text(by("hit"), m.percent(m.hitRatio(samples, at, m.WINDOW_S)));
  text(by("hit-sub"), `${m.percent(m.share(now.cached_tokens, now.prompt_tokens))} of ${m.number(now.prompt_tokens)} prompt tokens since start`);
  text(by("power"), status.power_watts === null ? "–" : `${m.number(Math.round(status.power_watts))} W`);
  text(by("power-sub"), status.power_watts === null ? "no node reports it" : `${status.workers.filter((w) => w.power_watts !== null).length} workers report it`);
  drawRefusals(now, old);
  spark("spark-requests", m.curve(samples, (i) => m.rate(samples, i, 1, (t) => t.requests)), (v) => `${m.number(v)} a second`);
  spark("spark-ttft", m.curve(samples, (i) => m.quantileOver(samples, i, 10, "time_to_first_token", 0.5)), m.seconds);
  spark("spark-hit", m.curve(samples, (i) => m.hitRatio(samples, i, 10)), m.percent, 1);
}

function drawState(status) {
  const ready = status.workers.some((w) => w.state === "ready");
  const [words, kind] = status.draining ? ["draining", "warn"] : ready ? ["serving", "good"] : ["no worker is ready", "bad"];
  text(by("state"), words);
  name(by("state"), `state ${kind}`);
  text(by("version"), status.version);
  text(by("uptime"), m.duration(status.uptime_s));
  document.title = kind === "good" ? "cgn-router" : `${words} – cgn-router`;
}

function draw(status) {
  m.remember(samples, status);
  drawState(status);
  drawTotals(status);
  drawWorkers(status);
  drawModels(status);
  drawTenants(status);
}

async function ask() {
  const answer = await fetch("/status.json", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS_MAX) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const status = await ask();
    lostSince = null;
    document.body.classList.remove("stale");
    draw(status);
  } catch {
    lostSince ??= new Date();
    document.body.classList.add("stale");
    text(by("state"), `not reachable since ${lostSince.toLocaleTimeString("en-GB")}`);
    name(by("state"), "state bad");
    document.title = "not reachable – cgn-router";
  }
  asking = false;
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
poll();
