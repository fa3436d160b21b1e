// The sections of the page, rendered from one status. Nothing here sends a request.

import { lastRate, peakRate } from "./chart.js";
import { bytes, clock, count, duration, plural, rate, roughly, words } from "./format.js";
import { bar, byId, element, rows, setAttribute, setText, show, tableRow, twoLines } from "./view.js";

const FIXED_BY = {
  transient: "consign: it retries",
  session: "consign: it creates a new session",
  destination: "the customer, in their account",
  job: "the author of the job",
  interrupted: "consign: the job is redelivered",
  defect: "the developers of consign",
  worker: "the operator of this worker",
};

// A dead letter is not retried by itself.
const DEAD_FIXED_BY = {
  ...FIXED_BY,
  transient: "the operator: requeue once the cause is resolved",
  session: "the operator: requeue once the cause is resolved",
};

const OUTCOMES = {
  delivered: ["✓", "delivered", "good"],
  skipped: ["–", "skipped", "quiet"],
  failed: ["✕", "failed", "bad"],
  expired: ["✕", "expired", "bad"],
  retrying: ["↻", "to be retried", "wait"],
  deferred: ["‖", "deferred", "wait"],
  returned: ["↩", "requeued", "quiet"],
};

// Issues that are shown.
const MAX_ISSUES = 10;
// Seconds for which dead letters need attention.
const RECENT_SECONDS = 3600;
// Ended transfers that are shown at first.
const SHOWN_ENDED = 10;
// Running transfers that are shown. A worker can have more slots than that.
const MAX_RUNNING = 100;

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

function tile(name, metered) {
  const value = element("span", { class: "value" });
  const beside = element("span", { class: "beside" });
  const level = metered ? bar("meter", name) : null;
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
  return ["Queue", connected ? "Connected" : "Disconnected", beside, null, connected ? "good" : "bad"];
}

export function overview(status) {
  const { slots, buffer, session_requests: requested } = status;
  const failed = ended(status, "failed", "expired");
  const skipped = ended(status, "skipped");
  const requests = sum(Object.values(requested));
  const cached = requests > 0 ? `${Math.floor((100 * requested.hit) / requests)} % of requests served from the cache` : "none needed yet";
  const tiles = [
    ["Running", `${count(slots.busy)} of ${plural(slots.total, "slot")}`, `backfills can use ${count(Math.min(slots.backfill, slots.total))}`, slots.busy / slots.total],
    ["Sent to S3 now", rate(lastRate(status.throughput)), `recent maximum ${rate(peakRate(status.throughput))}`, null],
    ["Delivered", count(ended(status, "delivered")), `${bytes(sum(status.lanes.map((lane) => lane.delivered_bytes)))}${skipped ? `, ${count(skipped)} skipped` : ""}`, null],
    ["Failed or expired", count(failed), `${plural(status.retries, "attempt")} retried, ${count(status.deferred)} deferred`, null, failed > 0 ? "bad" : "good"],
    ["Part buffers", bytes(buffer.bytes), `of ${bytes(buffer.limit_bytes)}`, buffer.limit_bytes > 0 ? buffer.bytes / buffer.limit_bytes : 0],
    ["Sessions", count(status.sessions), cached, null],
    queueTile(status.broker),
  ];
  rows(byId("tiles"), tiles, ([name]) => name, ([name, , , share]) => tile(name, share !== null));
}

// --- what needs attention ---------------------------------------------------------------------------------------------

// Destinations whose jobs wait or fail, the worst first: the order of the status.
function destinationIssues({ time: now, destination_states: { shown, filter } }) {
  if (filter) return null;
  const failing = shown.filter((one) => one.circuit_open || (one.consecutive_failures > 0 && !one.mended_at));
  return failing.map((one) => {
    const cause = one.circuit ?? one.last_failure;
    const message = cause ? `${words(cause.reason)}: ${cause.message}` : "";
    const effect = one.circuit_open ? "circuit breaker open, its jobs wait" : `${plural(one.consecutive_failures, "failure")} in a row`;
    return {
      key: `destination ${one.id}`,
      affected: one.id,
      problem: [effect, message],
      since: sinceWords(one, now),
      todo: cause?.hint || "Test the connection.",
      command: `consign check ${one.id}`,
    };
  });
}

const secondsSince = (at, now) => Math.max(0, (Date.parse(now) - Date.parse(at)) / 1000);

// Of an open circuit breaker the time is known; of other failures only that of the last one.
function sinceWords({ circuit, last_failure: last }, now) {
  const ago = (at) => `${roughly(secondsSince(at, now))} ago`;
  if (circuit) return [circuit.since, ago(circuit.since)];
  return last ? [last.at, `last failure, ${ago(last.at)}`] : [null, ""];
}

// Recent dead letters. Older ones may have been requeued or discarded already, which the worker does not know.
function deadIssues({ time: now, dead_letters: dead }) {
  const recent = dead.filter((one) => secondsSince(one.last_at, now) < RECENT_SECONDS);
  return recent.map((one) => ({
    key: `dead ${one.reason}`,
    affected: plural(one.count, "job"),
    problem: [`dead-lettered: ${words(one.reason)}`, `to be fixed by ${DEAD_FIXED_BY[one.class] ?? words(one.class)}`],
    since: [one.last_at, `last job, ${roughly(secondsSince(one.last_at, now))} ago`],
    todo: "Fix the cause, then requeue the jobs.",
    command: `consign dead list --reason ${one.reason}`,
  }));
}

function issueRow() {
  const row = tableRow(["Affected", "Problem", "Since", "What to do"]);
  const [affected, problem, since, todo] = row.cells;
  const description = twoLines(problem);
  const time = element("time", { class: "first" });
  const ago = element("span", { class: "second" });
  since.append(time, " ", ago);
  const remedy = element("span", { class: "first" });
  const command = element("code");
  todo.append(remedy, " ", command);
  row.fill = (issue) => {
    setText(affected, issue.affected);
    description(...issue.problem);
    const [at, words] = issue.since;
    setAttribute(time, "datetime", at);
    setText(time, at === null ? "–" : clock(at));
    setText(ago, words);
    setText(remedy, issue.todo);
    setText(command, issue.command);
  };
  return row;
}

// A filter of the destinations hides other issues: then the last ones stay.
export function attention(status) {
  const failing = destinationIssues(status);
  if (failing === null) return;
  const issues = [...failing, ...deadIssues(status)];
  rows(body("issues"), issues.slice(0, MAX_ISSUES), (issue) => issue.key, issueRow);
  show(byId("attention"), issues.length > 0);
  setText(byId("attention-count"), count(issues.length));
  const rest = issues.length - MAX_ISSUES;
  show(byId("issues-rest"), rest > 0);
  setText(byId("issues-rest"), `and ${count(rest)} more; see the lists below.`);
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
  if (phase === "opening") return "opening session and source";
  const inParts = parts > 0 ? ` in ${plural(parts, "part")}` : "";
  if (phase === "finishing") return `${bytes(expected)}${inParts}, finishing`;
  if (expected !== null) return `${bytes(sent)} of ${bytes(expected)}${inParts}`;
  return `${bytes(sent)}${inParts}${size === null ? "; the total size is unknown" : `, compressed from ${bytes(size)}`}`;
}

export function running(status) {
  const shown = status.running.slice(0, MAX_RUNNING);
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
  const description = twoLines(what);
  const time = element("time");
  when.append(time);
  row.fill = (end) => {
    name(end.job_id ?? "(no job id could be read)", end.destination === null ? "" : `to ${end.destination}, ${end.lane}`);
    const [sign, words, tone] = OUTCOMES[end.outcome] ?? ["•", end.outcome, "quiet"];
    setText(mark, sign);
    setText(word, words);
    setAttribute(outcome.firstElementChild, "data-tone", tone);
    const [main, beside] = end.trouble ? troubleWords(end.trouble) : [endWords(end), ""];
    description(main, beside);
    setAttribute(time, "datetime", end.at);
    setText(time, clock(end.at));
  };
  return row;
}

function endWords({ outcome, bytes: sent, seconds, superseded_by: newer }) {
  if (newer) return `a newer refresh was delivered: ${newer}`;
  if (outcome === "skipped") return "the key exists, and the job keeps the existing object";
  if (outcome === "expired") return "it expired before an attempt started";
  return `${bytes(sent)} in ${duration(seconds)}`;
}

function troubleWords({ reason, message, hint, next_try_at: next }) {
  const retry = next ? `Next attempt at ${clock(next)}.` : "";
  const sentence = hint && !/[.!?]$/.test(hint) ? `${hint}.` : hint;
  return [`${words(reason)}: ${message}`, [sentence, retry].filter((part) => part !== "").join(" ")];
}

// The list is as long as the worker's record. Usually its beginning is enough.
export function recent(status, which, expanded) {
  const all = status.recent[which];
  const list = expanded ? all : all.slice(0, SHOWN_ENDED);
  rows(body("ended"), list, (end) => end.number, endedRow);
  const more = byId("ended-more");
  show(more, all.length > SHOWN_ENDED);
  setAttribute(more, "aria-expanded", expanded);
  setText(more, expanded ? `Show the last ${SHOWN_ENDED} only` : `Show the last ${count(all.length)}`);
  show(byId("ended"), list.length > 0);
  show(byId("ended-empty"), list.length === 0);
  setText(byId("ended-empty"), which === "problems" ? "No problem since the worker started." : "Nothing has ended yet.");
}

// --- dead letters -----------------------------------------------------------------------------------------------------

function deadRow({ reason: name }) {
  const row = tableRow(["Reason", "Fixed by", "Jobs#", "Last#"]);
  const [reason, fixedBy, jobs, last] = row.cells;
  const command = element("code", {}, `consign dead list --reason ${name}`);
  reason.append(element("span", { class: "first" }, words(name)), " ", element("span", { class: "second" }, command));
  const time = element("time");
  last.append(time);
  row.fill = (dead) => {
    setText(fixedBy, DEAD_FIXED_BY[dead.class] ?? words(dead.class));
    setText(jobs, count(dead.count));
    setAttribute(time, "datetime", dead.last_at);
    setText(time, clock(dead.last_at));
  };
  return row;
}

export function deadLetters({ dead_letters: dead }) {
  rows(body("dead"), dead, (one) => one.reason, deadRow);
  show(byId("dead"), dead.length > 0);
  show(byId("dead-note"), dead.length > 0);
  show(byId("dead-empty"), dead.length === 0);
}

// --- counters ---------------------------------------------------------------------------------------------------------

function failureRow() {
  const row = tableRow(["Reason", "Fixed by", "Attempts#"]);
  const [reason, fixedBy, attempts] = row.cells;
  row.fill = (failure) => {
    setText(reason, words(failure.reason));
    setText(fixedBy, FIXED_BY[failure.class] ?? words(failure.class));
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
  const row = tableRow(["Lane", "Slots in use", "Delivered#", "Failed or expired#"]);
  const [name, used, delivered, failed] = row.cells;
  setText(name, lane);
  const level = bar("meter", `Slots in use by ${lane}`);
  const text = element("span", { class: "second" });
  used.append(level.node, text);
  row.fill = ({ running: busy, slots, ended: ends }) => {
    const words = slots > 0 ? `${count(busy)} of ${count(slots)}` : "not served";
    level.set(slots > 0 ? busy / slots : 0, words);
    setText(text, words);
    setText(delivered, count(ends.delivered));
    setText(failed, count(ends.failed + ends.expired));
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
  const sessionLines = twoLines(session);
  const done = twoLines(delivered);
  const description = twoLines(failure);
  row.fill = (one) => {
    name(one.id, `${one.bucket}, ${one.region}${one.configured ? "" : ", defined in a job"}`);
    const [sign, words, tone, means] = stateWords(one);
    setText(mark, sign);
    setText(word, words);
    setText(meaning, means ?? "");
    setAttribute(state.firstElementChild, "data-tone", tone);
    sessionLines(...sessionWords(one));
    setText(busy, one.max_concurrency === null ? count(one.in_flight) : `${count(one.in_flight)} of ${count(one.max_concurrency)}`);
    done(count(one.delivered), one.delivered > 0 ? bytes(one.delivered_bytes) : "");
    const trouble = one.last_failure;
    description(trouble ? `${clock(trouble.at)} ${troubleWords(trouble)[0]}` : "none", trouble?.hint ?? "");
  };
  return row;
}

// Other workers have deferred more jobs.
const ownJobs = (one) => (one.awaiting_repair > 0 ? ` (${count(one.awaiting_repair)} of this worker's)` : "");

function stateWords(one) {
  if (one.circuit?.state === "half_open") return ["…", "half-open", "wait", `${words(one.circuit.reason)}; one job probes, the others wait`];
  if (one.circuit_open) return ["✕", "circuit breaker open", "bad", one.circuit ? `${words(one.circuit.reason)}; its jobs wait${ownJobs(one)}, next probe at ${clock(one.circuit.next_probe_at)}` : "its jobs wait"];
  if (one.waiting + one.deferred > 0) return ["⇥", "at its limit", "wait", `${plural(one.waiting + one.deferred, "job")} waiting`];
  if (one.consecutive_failures > 0 && one.mended_at) return ["✓", "recovered", "quiet", `at ${clock(one.mended_at)}; no failure since then`];
  if (one.consecutive_failures > 0) return ["!", `${plural(one.consecutive_failures, "failure")} in a row`, "wait"];
  if (one.in_flight > 0 || one.delivered > 0) return ["✓", "healthy", "good"];
  return ["–", "not used yet", "quiet"];
}

function sessionWords({ session, auth }) {
  const by = auth === "iam_role" ? "by role" : "by access key";
  switch (session.state) {
    case "open":
      return [`${roughly(session.age_seconds)} old`, session.seconds_left === null ? `${by}, does not expire` : `${by}, ${roughly(session.seconds_left)} left`];
    case "refused":
      return ["refused", `${words(session.reason)}; next request in ${roughly(session.seconds_left)}`];
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
    : "No destination is configured, and no job defined one. Add one to the configuration as [destinations.ID].");
  setText(byId("destinations-count"), shown.length > 0 ? count(matching) : "");
  const rest = matching - shown.length;
  show(byId("destinations-rest"), rest > 0);
  setText(byId("destinations-rest"), `and ${count(rest)} more. Find one by its id.`);
}
