"""Renders every overlay, as kubectl does where it is there, and judges it: strict schemas of Kubernetes, and what must hold for the worker."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import yaml

import kustomize
from metrics import ROOT

FOLDER = ROOT / "deploy/kubernetes"
# Where the worker's own pods are selected.
SELECTORS = [("Deployment", ("spec", "selector", "matchLabels")), ("Deployment", ("spec", "template", "metadata", "labels")),
             ("PodDisruptionBudget", ("spec", "selector", "matchLabels")), ("NetworkPolicy", ("spec", "podSelector", "matchLabels")),
             ("PodMonitor", ("spec", "selector", "matchLabels"))]


def only(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, NUMBER, ANY = {"type": "string"}, {"type": "integer"}, {"type": "object"}
HEAD = {"apiVersion": TEXT, "kind": TEXT, "metadata": ANY}
# Kinds that no schema of Kubernetes has: the fields that are used here, by the resources' own definitions.
CUSTOM = {
    "PodMonitor": only(["spec"], **HEAD, spec=only(
        ["selector", "podMetricsEndpoints"], selector=only(matchLabels=ANY),
        podMetricsEndpoints={"type": "array", "items": only(["port"], port=TEXT, path=TEXT, interval=TEXT)})),
    "TriggerAuthentication": only(["spec"], **HEAD, spec=only(
        secretTargetRef={"type": "array", "items": only(["parameter", "name", "key"], parameter=TEXT, name=TEXT, key=TEXT)})),
    "ScaledObject": only(["spec"], **HEAD, spec=only(
        ["scaleTargetRef", "triggers"], scaleTargetRef=only(["name"], name=TEXT), minReplicaCount=NUMBER, maxReplicaCount=NUMBER,
        pollingInterval=NUMBER, cooldownPeriod=NUMBER, fallback=only(["failureThreshold", "replicas"], failureThreshold=NUMBER, replicas=NUMBER),
        advanced=only(horizontalPodAutoscalerConfig=only(behavior=ANY)),
        # Every value of a trigger is a text.
        triggers={"type": "array", "items": only(
            ["type", "metadata"], type=TEXT, metadata={"type": "object", "additionalProperties": TEXT}, authenticationRef=only(["name"], name=TEXT))})),
}


def key(document):
    return document["kind"], re.sub(r"-[a-z0-9]{10}$", "", document["metadata"]["name"])


def by_kubectl(overlay):
    """What the real tool renders, or None where it is not there."""
    tool = next((t for t in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(t[0])), None)
    if tool is None:
        print(f"skipped: no kubectl or kustomize here, so {overlay.name} was only rendered by tests/judges/kustomize.py")
        return None
    text = subprocess.run([*tool, str(overlay)], capture_output=True, text=True, check=True).stdout
    # The hash of a config map's content, and where it is named.
    return list(yaml.safe_load_all(re.sub(r"(name: consign)-[a-z0-9]{10}$", r"\1", text, flags=re.M)))


def schemas(documents):
    plain = [d for d in documents if d["kind"] not in CUSTOM]
    for document in documents:
        if document["kind"] in CUSTOM:
            yield from (f"{key(document)}: {e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(CUSTOM[document["kind"]]).iter_errors(document))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(plain, file)
        file.flush()
        told = subprocess.run(["kubernetes-validate", "--strict", "-k", "1.32", file.name], capture_output=True, text=True)
    said = told.stdout + told.stderr
    if told.returncode or said.count(" passed ") != len(plain):
        yield said


def must_hold(documents):
    found = {key(d): d for d in documents}
    deployment = found["Deployment", "consign"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    security, own = pod["securityContext"], container["securityContext"]
    port = {p["name"]: p["containerPort"] for p in container["ports"]}
    ingress = found["NetworkPolicy", "consign"]["spec"]["ingress"]
    volumes, mounts = {v["name"] for v in pod["volumes"]}, {m["name"] for m in container["volumeMounts"]}
    scaled = ("ScaledObject", "consign") in found
    yield security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0, "runs as root"
    yield security.get("seccompProfile") == {"type": "RuntimeDefault"}, "no seccomp profile"
    yield own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, "the container may too much"
    yield pod["automountServiceAccountToken"] is False, "a token of the cluster is mounted"
    yield pod["serviceAccountName"] == found["ServiceAccount", "consign"]["metadata"]["name"], "another service account"
    yield container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}, "liveness is not /livez"
    yield container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}, "readiness is not /readyz"
    yield found["NetworkPolicy", "consign"]["spec"]["egress"][0]["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}, "no way to the DNS"
    yield [p["port"] for rule in ingress for p in rule["ports"]] == [port["admin"]], "the network policy lets in other ports"
    yield volumes == mounts, "volumes and mounts differ"
    projected = [source for v in pod["volumes"] for source in v.get("projected", {}).get("sources", [])]
    yield {s["configMap"]["name"] for s in projected if "configMap" in s} == {"consign", "consign-customers"}, "another config map"
    for kind, path in SELECTORS:
        for name in (n for k, n in found if k == kind):
            at = found[kind, name]
            for step in path:
                at = at[step]
            yield at == {"app.kubernetes.io/name": "consign"}, f"{kind} selects {at}"
    yield scaled != ("replicas" in deployment), "either KEDA or the deployment says how many"
    if scaled:
        spec = found["ScaledObject", "consign"]["spec"]
        names = {t["authenticationRef"]["name"] for t in spec["triggers"]}
        yield all(("TriggerAuthentication", name) in found for name in names), "an authentication is missing"
        yield spec["scaleTargetRef"]["name"] == "consign", "scales something else"
        wanted = {"consign.jobs.scheduled", "consign.jobs.backfill", "consign.jobs.continued", "consign.lease"}
        queues = re.findall(r'"name": "([^"]+)"[^\n]*x-queue-type', (ROOT / "deploy/rabbitmq/definitions.json").read_text())
        hit = {q for q in queues if any(re.search(t["metadata"]["queueName"], q) for t in spec["triggers"])}
        yield hit == wanted, f"scales by {sorted(hit)}"


def judge():
    seen = set()
    overlays = sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))
    if not overlays:
        yield "there are no overlays"
    for overlay in overlays:
        documents = kustomize.render(overlay, seen)
        yield from (f"{overlay.name}: {problem}" for problem in schemas(documents))
        yield from (f"{overlay.name}: {what}" for holds, what in must_hold(documents) if not holds)
        real = by_kubectl(overlay)
        if real is not None and sorted(map(repr_of, real)) != sorted(map(repr_of, documents)):
            yield f"{overlay.name}: kubectl renders something else than tests/judges/kustomize.py"
    for path in FOLDER.rglob("*"):
        if path.is_file() and path not in {Path(s) for s in seen}:
            yield f"{path.relative_to(ROOT)} is part of no overlay"


def repr_of(document):
    return yaml.safe_dump(document, sort_keys=True)


if __name__ == "__main__":
    found = list(judge())
    print("\n".join(found))
    sys.exit(bool(found))
