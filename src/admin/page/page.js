// The loop: asks the worker for its status, shows it, and says so when there is no answer.

import { draw } from "./chart.js";
import { clock, plural } from "./format.js";
import * as sections from "./sections.js";
import { byId, setAttribute, setText, show } from "./view.js";

const EACH = 1000;
const EACH_HIDDEN = 15000;
const LONGEST = 10000;
const PATIENCE = 8000;

let last = null;
let lastAt = 0;
let failures = 0;
let timer = null;
// Counts the questions: only the answer to the latest one is shown.
let turns = 0;

async function ask() {
  const filter = byId("filter").value.trim();
  const stop = new AbortController();
  const limit = setTimeout(() => stop.abort(), PATIENCE);
  try {
    const address = filter ? `status?destination=${encodeURIComponent(filter)}` : "status";
    const answer = await fetch(address, { cache: "no-store", signal: stop.signal });
    if (!answer.ok) throw new Error(`the answer was ${answer.status}`);
    return await answer.json();
  } finally {
    clearTimeout(limit);
  }
}

async function turn() {
  turns += 1;
  const mine = turns;
  const status = await ask().catch(() => null);
  if (mine !== turns) return;
  if (status === null) {
    lost();
    return;
  }
  failures = 0;
  last = status;
  lastAt = Date.now();
  render();
  again(document.hidden ? EACH_HIDDEN : EACH);
}

function again(wait) {
  clearTimeout(timer);
  timer = setTimeout(turn, wait);
}

function lost() {
  failures += 1;
  const wait = Math.min(LONGEST, EACH * 2 ** (failures - 1));
  state("✕", "No answer from the worker", "bad");
  const shown = last === null ? "It may be starting, or this address is wrong." : `What you see is from ${clock(lastAt)}.`;
  banner(`The worker does not answer. ${shown} The page keeps asking, at the latest every ${LONGEST / 1000} seconds.`, "bad");
  document.body.classList.toggle("stale", true);
  again(document.hidden ? EACH_HIDDEN : wait);
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
    banner(`This worker is about to stop: it takes no new jobs, and ${plural(slots.busy, "transfer")} may still finish.`, "wait");
  } else if (!ready) {
    state("!", "Takes no jobs", "bad");
    banner(`This worker takes no jobs now: ${why}. It goes on by itself when that is over.`, "bad");
  } else {
    state("✓", "Ready for jobs", "good");
    banner(refused ? `The reload at ${clock(refused.at)} was refused; this worker runs on with the configuration before it: ${refused.problem}` : "", refused ? "bad" : "good");
  }
}

function render() {
  document.body.classList.toggle("stale", false);
  readiness(last);
  sections.about(last);
  sections.overview(last);
  sections.running(last);
  const which = document.querySelector("input[name=ended]:checked").value;
  sections.recent(last, which, byId("ended-more").ariaExpanded === "true");
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
byId("filter").addEventListener("input", () => again(200));
document.addEventListener("visibilitychange", () => document.hidden || again(0));
new ResizeObserver(() => last && draw(last.throughput)).observe(byId("sent-chart"));
turn();
