#!/usr/bin/env python3
"""What a usual Python worker costs at the same work: Celery (prefork), boto3, put_object, an outcome confirmed by the broker.

The end-to-end table compares `consign` with the result, if there is one in target/bench/reference_celery.json:

    python3 -m venv venv && venv/bin/pip install celery boto3
    cargo bench --bench e2e -- serve &          # prints the null server's port
    venv/bin/python benches/reference_celery.py --endpoint http://127.0.0.1:PORT --amqp "$CONSIGN_TEST_AMQP_URL"

Measured: jobs a second from the first publish to the last outcome, and user and system time of the worker's processes.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import boto3
import kombu
from celery import Celery

ENDPOINT = os.environ.get("REFERENCE_ENDPOINT", "")
AMQP = os.environ.get("REFERENCE_AMQP", "")
NAME = f"consign-reference-{os.environ.get('REFERENCE_RUN', os.getpid())}"
ROLE = "arn:aws:iam::123456789012:role/consign-bench"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"

app = Celery("reference", broker=AMQP)
app.conf.update(
    task_default_queue=NAME,
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=4,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
outcomes = kombu.Queue(f"{NAME}.outcomes", durable=True)
_clients = {}


def client():
    """One session per process, as is usual."""
    if "s3" not in _clients:
        sts = boto3.client("sts", endpoint_url=ENDPOINT, region_name="eu-central-1")
        role = sts.assume_role(RoleArn=ROLE, RoleSessionName="bench", ExternalId="consign-bench")["Credentials"]
        _clients["s3"] = boto3.client(
            "s3",
            endpoint_url=ENDPOINT,
            region_name="eu-central-1",
            aws_access_key_id=role["AccessKeyId"],
            aws_secret_access_key=role["SecretAccessKey"],
            aws_session_token=role["SessionToken"],
        )
    return _clients["s3"]


@app.task(name="deliver")
def deliver(path, key):
    """One file, one object, one outcome."""
    with open(path, "rb") as body:
        reply = client().put_object(
            Bucket="consign-bench", Key=key, Body=body, ServerSideEncryption="aws:kms", SSEKMSKeyId=KEY, BucketKeyEnabled=True
        )
    outcome = {"type": "delivered", "key": key, "etag": reply["ETag"]}
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish(outcome, routing_key=outcomes.name, delivery_mode=2, declare=[outcomes])


def tree(root):
    """A process and everything below it."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found, fresh = set(), {root}
    while fresh:
        found |= fresh
        fresh = {pid for pid, parent in parents.items() if parent in found} - found
    return found


def cpu_seconds(root):
    ticks = 0
    for pid in tree(root):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mib(root):
    total = 0
    for pid in tree(root):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


def await_outcomes(connection, count):
    left = [count]

    def one(_, message):
        message.ack()
        left[0] -= 1

    with connection.Consumer(outcomes, callbacks=[one], prefetch_count=500):
        while left[0] > 0:
            connection.drain_events(timeout=120)


def run(jobs, size, concurrency, folder):
    for index in range(jobs + concurrency * 2):
        (folder / str(index)).write_bytes(os.urandom(size))
    command = [sys.executable, "-m", "celery", "-A", "reference_celery", "worker", "--loglevel=warning", "--pool=prefork"]
    command += [f"--concurrency={concurrency}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(command, cwd=pathlib.Path(__file__).parent)
    try:
        with kombu.Connection(AMQP) as connection:
            for index in range(jobs, jobs + concurrency * 2):
                deliver.delay(str(folder / str(index)), f"warm/{index}")
            await_outcomes(connection, concurrency * 2)
            cpu, started = cpu_seconds(worker.pid), time.monotonic()
            for index in range(jobs):
                deliver.delay(str(folder / str(index)), f"bench/{index}")
            await_outcomes(connection, jobs)
            seconds = time.monotonic() - started
            result = {
                "name": f"Celery + boto3 prefork x{concurrency}",
                "jobs_per_second": round(jobs / seconds, 1),
                "cpu_micros_per_job": round((cpu_seconds(worker.pid) - cpu) / jobs * 1e6, 1),
                "peak_rss_mib": round(rss_mib(worker.pid), 1),
            }
            for queue in (NAME, outcomes.name):
                connection.default_channel.queue_delete(queue)
            return result
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True, help="the null server's URL")
    parser.add_argument("--amqp", required=True, help="the broker's URL")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--size", type=int, default=65536, help="bytes of each file")
    parser.add_argument("--concurrency", type=int, default=8, help="worker processes")
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=pathlib.Path, default=root / "target/bench/reference_celery.json")
    arguments = parser.parse_args()
    if not ENDPOINT:
        # The worker's processes import this file too: they find the addresses in the environment.
        run_name = str(os.getpid())
        os.environ.update(
            REFERENCE_ENDPOINT=arguments.endpoint, REFERENCE_AMQP=arguments.amqp, REFERENCE_RUN=run_name,
            AWS_ACCESS_KEY_ID="AKIABENCHBENCHBENCHB", AWS_SECRET_ACCESS_KEY="bench", AWS_EC2_METADATA_DISABLED="true",
        )
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        result = run(arguments.jobs, arguments.size, arguments.concurrency, pathlib.Path(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
