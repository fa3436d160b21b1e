// Each part of the page from one status. Nothing here asks the worker.

import { lastRate, peakRate } from "./chart.js";
import { bytes, clock, count, duration, plural, rate, roughly, words } from "./format.js";
import { bar, byId, element, rows, setAttribute, setText, show, tableRow, twoLines } from "./view.js";

const MENDS = {
  transient: "time: it is tried again",
  session: "time: a new session is made",
  destination: "the customer, in their account",
  job: "whoever made the job",
  interrupted: "nobody: it goes on elsewhere",
  defect: "the makers of consign",
  worker: "the operator of this worker",
};

const OUTCOMES = {
  delivered: ["✓", "delivered", "good"],
  skipped: ["–", "skipped", "quiet"],
  failed: ["✕", "failed", "bad"],
  expired: ["✕", "expired", "bad"],
  retrying: ["↻", "tried again", "wait"],
  deferred: ["‖", "put off", "wait"],
  returned: ["↩", "given back", "quiet"],
};

// Rows that are shown at first.
const FEW = 10;
// Running transfers that are shown; a worker may have more slots than anybody reads.
const MANY = 100;

const sum = (values) => values.reduce((all, value) => all + value, 0);
const body = (id) => byId(id).tBodies[0];

export function about(status) {
  setText(byId("worker"), status.worker);
  setText(byId("prefix"), status.prefix);
  setText(byId("version"), status.version);
  setText(byId("uptime"), roughly(status.uptime_seconds));
  const title = `consign: ${status.worker}`;
  if (document.title !== title) document.title = title;
}

// --- overview ---------------------------------------------------------------------------------------------------------

function tile(name, levelled) {
  const value = element("span", { class: "value" });
  const beside = element("span", { class: "beside" });
  const level = levelled ? bar("meter", name) : null;
  const parts = level ? [value, level.node, beside] : [value, beside];
  const node = element("div", { class: "tile" }, element("dt", {}, name), element("dd", {}, ...parts));
  const fill = ([, main, words, share, tone]) => {
    setText(value, main);
    setText(beside, words);
    setAttribute(node, "data-tone", tone ?? null);
    level?.set(share, `${main} ${words}`);
  };
  return { node, fill };
}

const ended = (status, ...outcomes) => sum(status.lanes.flatMap((lane) => outcomes.map((outcome) => lane.ended[outcome] ?? 0)));

function queueTile({ kind, address, connected, problem, unconfirmed, reconnects }) {
  const name = kind === "embedded" ? "embedded, in a file" : `RabbitMQ${address ? `, ${address}` : ""}`;
  const extras = [[unconfirmed, `${count(unconfirmed)} unconfirmed`], [reconnects, plural(reconnects, "reconnect")]];
  const beside = connected
    ? [name, ...extras.filter(([n]) => n > 0).map(([, words]) => words)].join("; ")
    : `${name}: ${problem ?? "no connection"}`;
  return ["Queue", connected ? "Connected" : "Away", beside, null, connected ? "good" : "bad"];
}

export function overview(status) {
  const { slots, buffer, session_requests: asked } = status;
  const givenUp = ended(status, "failed", "expired");
  const skipped = ended(status, "skipped");
  const requests = sum(Object.values(asked));
  const cached = requests > 0 ? `${Math.floor((100 * asked.hit) / requests)} % of requests from the cache` : "none was needed yet";
  const tiles = [
    ["Running", `${count(slots.busy)} of ${plural(slots.total, "slot")}`, `backfills may hold ${count(Math.min(slots.backfill, slots.total))}`, slots.busy / slots.total],
    ["Sent to S3 now", rate(lastRate(status.throughput)), `at most ${rate(peakRate(status.throughput))} lately`, null],
    ["Delivered", count(ended(status, "delivered")), `${bytes(sum(status.lanes.map((lane) => lane.delivered_bytes)))}${skipped ? `, ${count(skipped)} skipped` : ""}`, null],
    ["Given up", count(givenUp), `${plural(status.retries, "attempt")} repeated, ${count(status.deferred)} put off`, null, givenUp > 0 ? "bad" : "good"],
    ["Part buffers", bytes(buffer.bytes), `of ${bytes(buffer.limit_bytes)}`, buffer.limit_bytes > 0 ? buffer.bytes / buffer.limit_bytes : 0],
    ["Sessions", count(status.sessions), cached, null],
    queueTile(status.broker),
  ];
  rows(byId("tiles"), tiles, ([name]) => name, ([name, , , share]) => tile(name, share !== null));
}

// --- what runs now ----------------------------------------------------------------------------------------------------

function runningRow(first) {
  const row = tableRow(["Job", "Progress", "Speed#", "Time#"]);
  const [job, progress, speed, time] = row.cells;
  const name = twoLines(job);
  const level = bar("progressbar", `Progress of ${first.job_id}`);
  const text = element("span", { class: "second" });
  progress.append(level.node, text);
  row.fill = (transfer) => {
    const attempt = transfer.attempt > 1 ? `, attempt ${count(transfer.attempt)}` : "";
    name(transfer.job_id, `to ${transfer.destination}, ${transfer.lane}${attempt}`);
    const words = progressWords(transfer);
    level.set(transfer.expected_bytes > 0 ? transfer.bytes / transfer.expected_bytes : null, words);
    setText(text, words);
    setText(speed, transfer.bytes > 0 && transfer.seconds > 0 ? rate(transfer.bytes / transfer.seconds) : "–");
    setText(time, duration(transfer.seconds));
  };
  return row;
}

function progressWords({ phase, bytes: sent, parts, expected_bytes: expected, size }) {
  if (phase === "opening") return "opening the session and the source";
  const inParts = parts > 0 ? ` in ${plural(parts, "part")}` : "";
  if (phase === "finishing") return `${bytes(expected)}${inParts}, finishing`;
  if (expected !== null) return `${bytes(sent)} of ${bytes(expected)}${inParts}`;
  return `${bytes(sent)}${inParts}${size === null ? "; the whole size is not known" : `, compressed from ${bytes(size)}`}`;
}

export function running(status) {
  const shown = status.running.slice(0, MANY);
  rows(body("running"), shown, (transfer) => transfer.number, runningRow);
  const some = shown.length > 0;
  show(byId("running"), some);
  show(byId("running-empty"), !some);
  setText(byId("running-count"), some ? count(status.slots.busy) : "");
  const rest = status.slots.busy - shown.length;
  show(byId("running-rest"), rest > 0);
  setText(byId("running-rest"), `and ${count(rest)} more`);
}

// --- what ended -------------------------------------------------------------------------------------------------------

function endedRow() {
  const row = tableRow(["Job", "Outcome", "What happened", "When#"]);
  const [job, outcome, what, when] = row.cells;
  const name = twoLines(job);
  const mark = element("span", { "aria-hidden": "true" });
  const word = element("span");
  outcome.append(element("span", { class: "badge" }, mark, word));
  const story = twoLines(what);
  const time = element("time");
  when.append(time);
  row.fill = (end) => {
    name(end.job_id ?? "(no job id could be read)", end.destination === null ? "" : `to ${end.destination}, ${end.lane}`);
    const [sign, words, tone] = OUTCOMES[end.outcome] ?? ["•", end.outcome, "quiet"];
    setText(mark, sign);
    setText(word, words);
    setAttribute(outcome.firstElementChild, "data-tone", tone);
    const [main, beside] = end.trouble ? troubleWords(end.trouble) : [endWords(end), ""];
    story(main, beside);
    setAttribute(time, "datetime", end.at);
    setText(time, clock(end.at));
  };
  return row;
}

function endWords({ outcome, bytes: sent, seconds }) {
  if (outcome === "skipped") return "the key was taken, and the job keeps what is there";
  if (outcome === "expired") return "its time was over before an attempt began";
  return `${bytes(sent)} in ${duration(seconds)}`;
}

function troubleWords({ reason, message, hint, next_try_at: next }) {
  const again = next ? `Next try at ${clock(next)}.` : "";
  const sentence = hint && !/[.!?]$/.test(hint) ? `${hint}.` : hint;
  return [`${words(reason)}: ${message}`, [sentence, again].filter((part) => part !== "").join(" ")];
}

// The list is as long as the worker remembers; most of the time its beginning is enough.
export function recent(status, which, whole) {
  const all = status.recent[which];
  const list = whole ? all : all.slice(0, FEW);
  rows(body("ended"), list, (end) => end.number, endedRow);
  const more = byId("ended-more");
  show(more, all.length > FEW);
  setAttribute(more, "aria-expanded", whole);
  setText(more, whole ? `Show the last ${FEW} only` : `Show the last ${count(all.length)}`);
  show(byId("ended"), list.length > 0);
  show(byId("ended-empty"), list.length === 0);
  setText(byId("ended-empty"), which === "problems" ? "No problem since the worker started." : "Nothing has ended yet.");
}

// --- counters ---------------------------------------------------------------------------------------------------------

function failureRow() {
  const row = tableRow(["Reason", "Who can mend it", "Attempts#"]);
  const [reason, who, attempts] = row.cells;
  row.fill = (failure) => {
    setText(reason, words(failure.reason));
    setText(who, MENDS[failure.class] ?? words(failure.class));
    setText(attempts, count(failure.count));
  };
  return row;
}

export function failures(status) {
  rows(body("failures"), status.failures, (failure) => failure.reason, failureRow);
  show(byId("failures"), status.failures.length > 0);
  show(byId("failures-empty"), status.failures.length === 0);
}

function laneRow({ lane }) {
  const row = tableRow(["Lane", "Slots in use", "Delivered#", "Given up#"]);
  const [name, used, delivered, givenUp] = row.cells;
  setText(name, lane);
  const level = bar("meter", `Slots in use by ${lane}`);
  const text = element("span", { class: "second" });
  used.append(level.node, text);
  row.fill = ({ running: busy, slots, ended: ends }) => {
    const words = slots > 0 ? `${count(busy)} of ${count(slots)}` : "not served";
    level.set(slots > 0 ? busy / slots : 0, words);
    setText(text, words);
    setText(delivered, count(ends.delivered));
    setText(givenUp, count(ends.failed + ends.expired));
  };
  return row;
}

export function lanes(status) {
  rows(body("lanes"), status.lanes, (lane) => lane.lane, laneRow);
}

// --- destinations -----------------------------------------------------------------------------------------------------

function destinationRow() {
  const row = tableRow(["Destination", "State", "Session", "Running#", "Delivered#", "Last failure"]);
  const [id, state, session, busy, delivered, failure] = row.cells;
  const name = twoLines(id);
  const mark = element("span", { "aria-hidden": "true" });
  const word = element("span");
  const meaning = element("span", { class: "second" });
  state.append(element("span", { class: "badge" }, mark, word), " ", meaning);
  const login = twoLines(session);
  const done = twoLines(delivered);
  const story = twoLines(failure);
  row.fill = (one) => {
    name(one.id, `${one.bucket}, ${one.region}${one.configured ? "" : ", came with a job"}`);
    const [sign, words, tone, means] = stateWords(one);
    setText(mark, sign);
    setText(word, words);
    setText(meaning, means ?? "");
    setAttribute(state.firstElementChild, "data-tone", tone);
    login(...sessionWords(one));
    setText(busy, one.max_concurrency === null ? count(one.in_flight) : `${count(one.in_flight)} of ${count(one.max_concurrency)}`);
    done(count(one.delivered), one.delivered > 0 ? bytes(one.delivered_bytes) : "");
    const trouble = one.last_failure;
    story(trouble ? `${clock(trouble.at)} ${troubleWords(trouble)[0]}` : "none", trouble?.hint ?? "");
  };
  return row;
}

// Other workers have sent others away.
const known = (one) => (one.awaiting_repair > 0 ? ` (${count(one.awaiting_repair)} of this worker's)` : "");

function stateWords(one) {
  if (one.circuit?.state === "half_open") return ["…", "a job asks", "wait", `${words(one.circuit.reason)}; the others wait`];
  if (one.circuit_open) return ["✕", "circuit open", "bad", one.circuit ? `${words(one.circuit.reason)}; its jobs wait${known(one)}, one asks at ${clock(one.circuit.next_probe_at)}` : "its jobs wait"];
  if (one.waiting + one.deferred > 0) return ["⇥", "at its limit", "wait", `${plural(one.waiting + one.deferred, "job")} must wait`];
  if (one.consecutive_failures > 0 && one.mended_at) return ["✓", "mended", "quiet", `at ${clock(one.mended_at)}; no failure since`];
  if (one.consecutive_failures > 0) return ["!", `${plural(one.consecutive_failures, "failure")} in a row`, "wait"];
  if (one.in_flight > 0 || one.delivered > 0) return ["✓", "well", "good"];
  return ["–", "not used yet", "quiet"];
}

function sessionWords({ session, auth }) {
  const by = auth === "iam_role" ? "by role" : "by access key";
  switch (session.state) {
    case "open":
      return [`${roughly(session.age_seconds)} old`, session.seconds_left === null ? `${by}, does not end` : `${by}, ${roughly(session.seconds_left)} left`];
    case "refused":
      return ["refused", `${words(session.reason)}; asked for again in ${roughly(session.seconds_left)}`];
    default:
      return ["none", by];
  }
}

export function destinations(status) {
  const { shown, matching, filter } = status.destination_states;
  rows(body("destinations"), shown, (one) => one.id, destinationRow);
  show(byId("destinations"), shown.length > 0);
  show(byId("destinations-empty"), shown.length === 0);
  setText(byId("destinations-empty"), filter
    ? `No destination has “${filter}” in its id.`
    : "No destination is configured, and no job brought its own. Add one to the configuration, below [destinations.ID].");
  setText(byId("destinations-count"), shown.length > 0 ? count(matching) : "");
  const rest = matching - shown.length;
  show(byId("destinations-rest"), rest > 0);
  setText(byId("destinations-rest"), `and ${count(rest)} more, without trouble or less busy. Look for one by its id.`);
}
