// A scheduler in Node: publishes jobs with confirms, reads outcomes, asks for connection tests.
//
//     node scheduler.js enqueue jobs.ndjson        one job a line; ends when each has its outcome
//     node scheduler.js check acme                 ends 0 when the destination is ready
//
// AMQP_URL names the broker, CONSIGN_PREFIX is broker.prefix of the workers (consign).
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect } from "amqplib";

/** @typedef {import("./types/job.js").ConsignJob} Job */
/** @typedef {import("./types/outcome.js").ConsignOutcome} Outcome */
/** @typedef {import("./types/check-answer.js").ConsignCheck} Answer */

const prefix = process.env.CONSIGN_PREFIX ?? "consign";
// An outcome that ends a job; `retrying` only says that another attempt follows.
const final = new Set(["delivered", "failed", "skipped", "expired"].map((kind) => `consign.transfer.${kind}.v1`));

/** @param {Job} job */
function destinationId(job) {
  return typeof job.destination === "string" ? job.destination : job.destination.id;
}

/**
 * Resolves when the broker has confirmed the job: then it is on disk at a majority of its nodes. Rejects when the queue is full or
 * there is no topology; then publish it again later. After a lost connection, too: a job that comes twice is delivered once, by its id.
 *
 * @param {import("amqplib").ConfirmChannel} channel
 * @param {Job} job
 */
function enqueue(channel, job, lane = "scheduled") {
  return publish(channel, `job.${lane}.${destinationId(job)}`, job, { messageId: job.id, persistent: true });
}

/**
 * @param {import("amqplib").ConfirmChannel} channel
 * @param {string} routingKey
 * @param {object} body
 * @param {import("amqplib").Options.Publish} options
 * @returns {Promise<void>}
 */
function publish(channel, routingKey, body, options) {
  return new Promise((resolve, reject) => {
    // A message without a queue comes back before it is confirmed. The key tells it from others on their way.
    const key = randomUUID();
    /** @param {import("amqplib").Message} message */
    const returned = (message) => {
      if (message.properties.headers?.["example-key"] === key) reject(new Error(`no queue takes ${routingKey}: is the topology applied?`));
    };
    channel.on("return", returned);
    const properties = { contentType: "application/json", mandatory: true, headers: { "example-key": key }, ...options };
    channel.publish(prefix, routingKey, Buffer.from(JSON.stringify(body)), properties, (refused) => {
      channel.off("return", returned);
      refused ? reject(refused) : resolve();
    });
  });
}

/**
 * Calls back for every outcome, from a durable queue of the scheduler's own, which keeps them while the scheduler is away. An outcome is
 * acknowledged when the call has returned, so that one that was not written down comes again.
 *
 * @param {import("amqplib").ConfirmChannel} channel
 * @param {string} queue
 * @param {(outcome: Outcome) => void | Promise<void>} use
 */
async function outcomes(channel, queue, use) {
  await channel.assertQueue(queue, { durable: true, arguments: { "x-queue-type": "quorum", "x-delivery-limit": 1000000 } });
  await channel.bindQueue(queue, `${prefix}.outcomes`, "transfer.#");
  await channel.prefetch(100);
  await channel.consume(queue, async (message) => {
    if (!message) return;
    await use(JSON.parse(message.content.toString()));
    channel.ack(message);
  });
}

/**
 * Asks a worker for a connection test, and waits for the answer.
 *
 * @param {import("amqplib").ConfirmChannel} channel
 * @param {string} destination
 * @returns {Promise<Answer>}
 */
async function check(channel, destination, seconds = 120) {
  const asked = randomUUID();
  const { queue } = await channel.assertQueue(`${prefix}.reply.${asked}`, { exclusive: true });
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("no worker has answered")), seconds * 1000);
    const listening = channel.consume(queue, (message) => {
      if (message?.properties.correlationId !== asked) return;
      clearTimeout(timer);
      resolve(JSON.parse(message.content.toString()));
    }, { noAck: true });
    const options = { type: "consign.check.v1", replyTo: queue, correlationId: asked };
    listening.then(() => publish(channel, `job.scheduled.${destination}`, { version: 1, destination }, options)).catch(reject);
  });
}

/**
 * @param {import("amqplib").ConfirmChannel} channel
 * @param {Job[]} jobs
 */
async function enqueueAll(channel, jobs) {
  const waiting = new Set(jobs.map((job) => job.id));
  let failed = 0;
  /** @type {() => void} */
  let done = () => {};
  const ended = new Promise((resolve) => (done = () => resolve(undefined)));
  await outcomes(channel, `${prefix}.example.node`, (outcome) => {
    // The same outcome may come twice; the second finds nobody who waits for it.
    if (!final.has(outcome.type) || !waiting.delete(outcome.subject)) return;
    const { bytes, reason, message } = outcome.data;
    if (outcome.type === "consign.transfer.failed.v1") failed += 1;
    console.log([outcome.subject, outcome.type.split(".")[2], bytes, reason, message].join("\t"));
    if (waiting.size === 0) done();
  });
  await Promise.all(jobs.map((job) => enqueue(channel, job)));
  await ended;
  return failed ? 75 : 0;
}

const [command, what] = process.argv.slice(2);
if (!what || !["enqueue", "publish", "check"].includes(command)) {
  console.error("usage: node scheduler.js enqueue FILE | publish FILE | check DESTINATION");
  process.exit(2);
}
const url = process.env.AMQP_URL;
if (!url) throw new Error("set AMQP_URL to the URL of the broker");
const connection = await connect(url);
const channel = await connection.createConfirmChannel();
if (command === "check") {
  const answer = await check(channel, what);
  for (const { step, result, code, cause } of answer.steps) console.log([step, result, code, cause].join("\t"));
  console.log(`verdict\t${answer.verdict}`);
  process.exitCode = answer.verdict === "ready" ? 0 : 3;
} else {
  /** @type {Job[]} */
  const jobs = readFileSync(what, "utf8").split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
  if (command === "enqueue") process.exitCode = await enqueueAll(channel, jobs);
  else await Promise.all(jobs.map((job) => enqueue(channel, job)));
}
// What was acknowledged last is on its way before the connection ends.
await channel.close();
await connection.close();
