// The polling loop: requests the status of the worker, renders it, and reports a missing response.

import { draw } from "./chart.js";
import { clock, clocks, plural } from "./format.js";
import * as sections from "./sections.js";
import { byId, setAttribute, setText, show } from "./view.js";

// In milliseconds.
const POLL_INTERVAL = 1000;
const HIDDEN_POLL_INTERVAL = 15000;
const MAX_RETRY_DELAY = 10000;
const REQUEST_TIMEOUT = 8000;

let last = null;
let lastAt = 0;
let failures = 0;
let timer = null;
// Counts the requests: only the response to the latest one is shown.
let requests = 0;

async function request() {
  const filter = byId("filter").value.trim();
  const stop = new AbortController();
  const limit = setTimeout(() => stop.abort(), REQUEST_TIMEOUT);
  try {
    const address = filter ? `status?destination=${encodeURIComponent(filter)}` : "status";
    const response = await fetch(address, { cache: "no-store", signal: stop.signal });
    if (!response.ok) throw new Error(`the response was ${response.status}`);
    return await response.json();
  } finally {
    clearTimeout(limit);
  }
}

async function poll() {
  requests += 1;
  const number = requests;
  const status = await request().catch(() => null);
  if (number !== requests) return;
  if (status === null) {
    showUnreachable();
    return;
  }
  failures = 0;
  last = status;
  lastAt = Date.now();
  render();
  schedulePoll(document.hidden ? HIDDEN_POLL_INTERVAL : POLL_INTERVAL);
}

function schedulePoll(delay) {
  clearTimeout(timer);
  timer = setTimeout(poll, delay);
}

function showUnreachable() {
  failures += 1;
  const delay = Math.min(MAX_RETRY_DELAY, POLL_INTERVAL * 2 ** (failures - 1));
  state("✕", "No answer from the worker", "bad");
  const shown = last === null ? "It may be starting, or this address is wrong." : `What you see is from ${clock(lastAt)}.`;
  banner(`The worker does not respond. ${shown} The page retries at least every ${MAX_RETRY_DELAY / 1000} seconds.`, "bad");
  document.body.classList.toggle("stale", true);
  schedulePoll(document.hidden ? HIDDEN_POLL_INTERVAL : delay);
}

// The one live region: it changes only when the state does.
function state(sign, words, tone) {
  setText(byId("state"), `${sign} ${words}`);
  setAttribute(byId("state"), "data-tone", tone);
}

function banner(text, tone) {
  const node = byId("banner");
  show(node, text !== "");
  setText(node, text);
  setAttribute(node, "data-tone", tone);
}

function readiness({ ready, draining, not_ready_because: why, slots, reload_refused: refused }) {
  if (draining) {
    state("‖", "Draining", "wait");
    banner(`This worker is stopping. It takes no new jobs; ${plural(slots.busy, "transfer")} may still finish.`, "wait");
  } else if (!ready) {
    state("!", "Not ready", "bad");
    banner(`This worker is not ready for jobs: ${clocks(why)}. It continues by itself when this is resolved. No restart is needed.`, "bad");
  } else {
    state("✓", "Ready for jobs", "good");
    banner(refused ? `The configuration was not reloaded completely at ${clock(refused.at)}. The last valid settings stay in effect. Fix this, then reload: ${refused.problem}` : "", refused ? "bad" : "good");
  }
}

function render() {
  document.body.classList.toggle("stale", false);
  readiness(last);
  sections.about(last);
  sections.overview(last);
  sections.attention(last);
  sections.running(last);
  const which = document.querySelector("input[name=ended]:checked").value;
  sections.recent(last, which, byId("ended-more").ariaExpanded === "true");
  sections.deadLetters(last);
  sections.failures(last);
  sections.lanes(last);
  sections.destinations(last);
  draw(last.throughput);
}

for (const choice of document.querySelectorAll("input[name=ended]")) {
  choice.addEventListener("change", () => last && render());
}
byId("ended-more").addEventListener("click", ({ currentTarget: more }) => {
  setAttribute(more, "aria-expanded", more.ariaExpanded !== "true");
  render();
});
byId("filter").addEventListener("input", () => schedulePoll(200));
document.addEventListener("visibilitychange", () => document.hidden || schedulePoll(0));
new ResizeObserver(() => last && draw(last.throughput)).observe(byId("sent-chart"));
poll();
