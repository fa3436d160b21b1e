"""A scheduler in Python: publishes jobs with confirms, reads outcomes, asks for connection tests.

    python scheduler.py enqueue jobs.ndjson        # one job a line; ends when each has its outcome
    python scheduler.py check acme                 # ends 0 when the destination is ready

AMQP_URL names the broker, CONSIGN_PREFIX is broker.prefix of the workers (consign).
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable

import pika
from pika.exceptions import NackError, UnroutableError

from consign_check_answer import ConsignCheck
from consign_job import ConsignJob
from consign_outcome import ConsignOutcome

PREFIX = os.environ.get("CONSIGN_PREFIX", "consign")
# An outcome that ends a job; `retrying` only says that another attempt follows.
FINAL = {f"consign.transfer.{kind}.v1" for kind in ("delivered", "failed", "skipped", "expired")}


def connect() -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))


def destination_id(job: ConsignJob) -> str:
    destination = job["destination"]
    return destination if isinstance(destination, str) else str(destination["id"])


def encode(job: ConsignJob) -> bytes:
    return json.dumps(job, ensure_ascii=False, separators=(",", ":")).encode()


class Scheduler:
    """One channel with confirms: what `enqueue` has returned from is on disk at a majority of the broker's nodes."""

    def __init__(self, connection: pika.BlockingConnection) -> None:
        self.channel = connection.channel()
        self.channel.confirm_delivery()

    def enqueue(self, job: ConsignJob, lane: str = "scheduled") -> None:
        """Publishes one job. Raises NackError (the queue is full) and UnroutableError (no topology); then publish it again later.
        After a lost connection, too: a job that comes twice is delivered once, by its id."""
        properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent.value, message_id=job["id"])
        self.channel.basic_publish(
            exchange=PREFIX, routing_key=f"job.{lane}.{destination_id(job)}", body=encode(job), properties=properties, mandatory=True)

    def bind_outcomes(self, queue: str) -> None:
        """A durable queue of the scheduler's own. Bind it before the first job; it keeps outcomes while the scheduler is away."""
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1000000}
        self.channel.queue_declare(queue, durable=True, arguments=arguments)
        self.channel.queue_bind(queue, f"{PREFIX}.outcomes", "transfer.#")

    def outcomes(self, queue: str, use: Callable[[ConsignOutcome], bool]) -> None:
        """Calls `use` for every outcome, until it returns False. An outcome is acknowledged after that, so that one that was not
        written down comes again."""
        for method, _, body in self.channel.consume(queue):
            wants_more = use(json.loads(body))
            self.channel.basic_ack(method.delivery_tag)
            if not wants_more:
                break
        self.channel.cancel()

    def check(self, destination: str, timeout: float = 120) -> ConsignCheck:
        """Asks a worker for a connection test, and waits for the answer."""
        asked = str(uuid.uuid4())
        reply_to = self.channel.queue_declare(f"{PREFIX}.reply.{asked}", exclusive=True).method.queue
        properties = pika.BasicProperties(content_type="application/json", type="consign.check.v1", reply_to=reply_to, correlation_id=asked)
        self.channel.basic_publish(
            exchange=PREFIX, routing_key=f"job.scheduled.{destination}", properties=properties, mandatory=True,
            body=json.dumps({"version": 1, "destination": destination}).encode())
        for method, answer, body in self.channel.consume(reply_to, auto_ack=True, inactivity_timeout=timeout):
            if method is None:
                raise TimeoutError("no worker has answered")
            if answer.correlation_id == asked:
                self.channel.cancel()
                return json.loads(body)
        raise TimeoutError("the channel was closed")


def enqueue_all(scheduler: Scheduler, jobs: list[ConsignJob]) -> int:
    queue = f"{PREFIX}.example.python"
    scheduler.bind_outcomes(queue)
    for job in jobs:
        scheduler.enqueue(job)
    waiting, failed = {job["id"] for job in jobs}, []

    def use(outcome: ConsignOutcome) -> bool:
        # The same outcome may come twice; the second finds nobody who waits for it.
        if outcome["type"] in FINAL and outcome["subject"] in waiting:
            waiting.remove(outcome["subject"])
            data = outcome["data"]
            if outcome["type"] == "consign.transfer.failed.v1":
                failed.append(outcome["subject"])
            print(outcome["subject"], outcome["type"].split(".")[2], data.get("bytes"), data.get("reason"), data.get("message"), sep="\t")
        return bool(waiting)

    scheduler.outcomes(queue, use)
    return 75 if failed else 0


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("enqueue", "publish", "check"):
        print(__doc__, file=sys.stderr)
        return 2
    command, what = arguments
    with connect() as connection:
        scheduler = Scheduler(connection)
        if command == "check":
            answer = scheduler.check(what)
            for step in answer["steps"]:
                print(step["step"], step["result"], step["code"], step["cause"], sep="\t")
            print("verdict", answer["verdict"], sep="\t")
            return 0 if answer["verdict"] == "ready" else 3
        with open(what, encoding="utf-8") as lines:
            jobs: list[ConsignJob] = [json.loads(line) for line in lines if line.strip()]
        if command == "enqueue":
            return enqueue_all(scheduler, jobs)
        for job in jobs:
            scheduler.enqueue(job)
        return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (NackError, UnroutableError) as refused:
        sys.exit(f"the broker has not taken it: {refused!r}")
