"""Settings in different files that belong together: drain and grace, memory, ports, mounts, and that the worker takes its configuration."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from metrics import ROOT

DEPLOY = ROOT / "deploy"
FULL = tomllib.loads((ROOT / "config/consign.full.toml").read_text())


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)([smh])", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def mebibytes(text):
    return int(re.fullmatch(r"(\d+)(?:MiB|Mi|M|m)", text).group(1))


def kubernetes():
    config = tomllib.loads((DEPLOY / "kubernetes/base/consign.toml").read_text())
    (deployment,) = yaml.safe_load_all((DEPLOY / "kubernetes/base/deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain, memory = seconds(config["worker"]["drain_timeout"]), mebibytes(config["worker"]["memory_budget"])
    yield pod["terminationGracePeriodSeconds"] == drain + 30, "Kubernetes: terminationGracePeriodSeconds is not drain_timeout and 30 s"
    yield mebibytes(container["resources"]["limits"]["memory"]) == 2 * memory, "Kubernetes: the memory limit is not twice worker.memory_budget"
    port = container["ports"][0]["containerPort"]
    yield config["admin"]["listen"] == f"0.0.0.0:{port}", "Kubernetes: the container's port is not that of admin.listen"
    at = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    yield config["broker"]["url_file"].startswith(at["broker"] + "/"), "Kubernetes: broker.url_file is not in the mounted secret"
    yield container["args"][-1] == at["config"], "Kubernetes: --config is not the directory of the mounted config maps"
    slots = str(FULL["worker"]["slots"])
    scaled = (DEPLOY / "kubernetes/components/keda/scaled-object.yaml").read_text()
    yield f'value: "{slots}"' in scaled, "KEDA: not one worker for each worker.slots jobs"


def compose():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    worker = services["consign"]
    yield seconds(worker["stop_grace_period"]) == seconds(FULL["worker"]["drain_timeout"]) + 30, "compose: stop_grace_period is not drain_timeout and 30 s"
    yield mebibytes(worker["mem_limit"]) == 2 * mebibytes(FULL["worker"]["memory_budget"]), "compose: mem_limit is not twice worker.memory_budget"
    for name, service in services.items():
        yield ":latest" not in service["image"], f"compose: {name} runs whatever is newest"
        for port in service.get("ports", []):
            yield port.startswith("127.0.0.1:"), f"compose: {name} publishes {port} beyond loopback"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            yield not source.startswith(".") or (DEPLOY / source).exists(), f"compose: {source} is not there"
    named = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    sample = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.M))
    yield named == sample, f"compose: .env.example and compose.yaml differ in {sorted(named ^ sample)}"
    (source,) = yaml.safe_load((DEPLOY / "compose/grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DEPLOY / "compose/grafana/provisioning/dashboards/consign.yaml").read_text())["providers"]
    yield source["isDefault"] and source["url"] == "http://prometheus:9090", "Grafana: another Prometheus"
    yield f"./grafana:{provider['options']['path']}:ro" in services["grafana"]["volumes"], "Grafana: the dashboard is not where it is looked for"


def others():
    docker = (DEPLOY / "Dockerfile").read_text()
    port = FULL["admin"]["listen"].split(":")[1]
    yield f"CONSIGN__ADMIN__LISTEN=0.0.0.0:{port}" in docker and f"EXPOSE {port}" in docker, "Dockerfile: the port is not that of admin.listen"
    unit = (DEPLOY / "systemd/consign.service").read_text()
    stop = seconds(re.search(r"^TimeoutStopSec=(.+)$", unit, re.M).group(1))
    yield stop > seconds(FULL["worker"]["drain_timeout"]), "systemd: TimeoutStopSec is not longer than worker.drain_timeout"
    rust = re.search(r'^rust-version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    image = re.search(r"^ARG BUILD_IMAGE=rust:([\d.]+)", docker, re.M).group(1)
    yield tuple(map(int, image.split("."))) >= tuple(map(int, rust.split(".")[:2])), "Dockerfile: the compiler is too old"


def configurations():
    """Asks the program itself, where it is there."""
    program = os.environ["CONSIGN_BIN"]
    if not Path(program).exists():
        print(f"skipped: there is no {program} to read the sample configurations with")
        return
    clean = {"PATH": "/usr/bin:/bin", "CONSIGN__BROKER__URL": "amqps://consign:x@broker.example.com/%2f",
             # The folder of the container is not here either.
             "CONSIGN__SOURCE__FILE_ROOT": "/"}
    customers = sorted(str(path.relative_to(DEPLOY)) for path in (DEPLOY / "kubernetes/base/customers").glob("*.toml"))
    for name in ("compose/consign.toml", "kubernetes/base/consign.toml", *customers):
        text = (DEPLOY / name).read_text()
        # The secret is not here; its URL comes by the environment.
        told = subprocess.run([program, "config", "validate", "--config", "/dev/stdin"], env=clean, capture_output=True, text=True,
                              input=re.sub(r"^url_file = .*$", "", text, flags=re.M))
        yield told.returncode == 0, f"{name}: {told.stdout}{told.stderr}"
    told = subprocess.run([program, "topology", "print", "--json", "--config", str(ROOT / "config/consign.minimal.toml")],
                          env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    deployed = json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())
    yield told.returncode == 0 and json.loads(told.stdout) == deployed, "rabbitmq/definitions.json is not what `consign topology print --json` prints"


if __name__ == "__main__":
    found = [what for rules in (kubernetes, compose, others, configurations) for holds, what in rules() if not holds]
    print("\n".join(found))
    sys.exit(bool(found))
