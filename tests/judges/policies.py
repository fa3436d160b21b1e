"""The policies of RabbitMQ fit the queues of the definitions, and those for later versions only add to them."""

import json
import re
import sys

from metrics import ROOT

FOLDER = ROOT / "deploy/rabbitmq"
# What each release's own queues take as a policy; an unknown key makes the broker refuse the file.
KEYS = {"policies.json": {"max-length-bytes"}, "policies-4.json": {"max-length-bytes", "consumer-timeout"}}
# broker.lease_after is at most 30 minutes, and no message is unsettled for longer.
LONGEST_LEASE_AFTER = 30 * 60 * 1000


def chosen(file, queues):
    """Queue -> what applies to it; a queue that two policies want belongs to one of them only."""
    for policy in json.loads((FOLDER / file).read_text())["policies"]:
        hit = [queue for queue in queues if re.search(policy["pattern"], queue)]
        if not hit:
            yield None, f"{policy['name']} fits no queue"
        for queue in hit:
            yield queue, policy["definition"]


def judge():
    queues = [queue["name"] for queue in json.loads((FOLDER / "definitions.json").read_text())["queues"]]
    applied = {}
    for file, keys in KEYS.items():
        for queue, definition in chosen(file, queues):
            if queue is None or (file, queue) in applied:
                yield f"{file}: {definition if queue is None else queue + ' has two policies'}"
                continue
            applied[file, queue] = definition
            if not definition.keys() <= keys or not all(type(value) is int for value in definition.values()):
                yield f"{file}: {queue}: {definition}"
    for queue in queues:
        old, new = applied.get(("policies.json", queue), {}), applied.get(("policies-4.json", queue), {})
        if {k: v for k, v in new.items() if k != "consumer-timeout"} != old:
            yield f"{queue}: the policies differ in more than the time-out"
        if queue.startswith("consign.jobs.") and new.get("consumer-timeout", 0) <= LONGEST_LEASE_AFTER:
            yield f"{queue}: the time-out is not longer than the longest broker.lease_after"


if __name__ == "__main__":
    found = list(judge())
    print("\n".join(found))
    sys.exit(bool(found))
