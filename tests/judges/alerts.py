"""Each alert has a runbook with its five sections, a test in which it fires, and one in which it does not."""

import re
import sys

import yaml

from metrics import ROOT, exported, problems

SECTIONS = ["Symptom", "Metric", "Likely causes", "Action", "Verification"]
PROMETHEUS, RUNBOOKS = ROOT / "deploy/prometheus", ROOT / "deploy/docs/runbooks"


def rules(name):
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expectations(tests):
    """(name of the test, alerts that fire) for each moment that is looked at."""
    for test in tests:
        for look in test.get("promql_expr_test", []):
            labels = " ".join(sample["labels"] for sample in look["exp_samples"])
            yield test["name"], set(re.findall(r'alertname="(\w+)"', labels))


def sections(page):
    parts = re.split(r"^## (.+)$", page, flags=re.M)
    return parts[1::2], [text.strip() for text in parts[2::2]]


def judge_page(alert):
    name, path = alert["alert"], RUNBOOKS / f"{alert['alert']}.md"
    if alert["annotations"].get("runbook") != str(path.relative_to(ROOT)):
        yield f"{name}: the annotation `runbook` must be {path.relative_to(ROOT)}"
    if not path.exists():
        yield f"{name}: {path.relative_to(ROOT)} is missing"
        return
    page = path.read_text()
    titles, texts = sections(page)
    if titles != SECTIONS or not all(texts):
        yield f"{name}: the page must have the sections {SECTIONS}, none of them empty; it has {titles}"
    if not page.startswith(f"# {name}\n"):
        yield f"{name}: the page must begin with its name"
    for metric in set(re.findall(r"\bconsign[_:][\w:]+|process_\w+", alert["expr"])):
        if metric not in page:
            yield f"{name}: the page does not name {metric}"


def judge():
    alerts, records = [r for r in rules("alerts.yml") if "alert" in r], rules("recording.yml")
    known = exported()
    looks = list(expectations(yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]))
    for rule in alerts + records:
        yield from (f"{rule.get('alert') or rule['record']}: {p}" for p in problems(rule["expr"], known))
    for alert in alerts:
        name = alert["alert"]
        yield from judge_page(alert)
        own = [fires for test, fires in looks if test.startswith(f"{name},")]
        if not any(name in fires for fires in own):
            yield f"{name}: no test in which it fires"
        if not any(name not in fires for fires in own):
            yield f"{name}: no test in which it stays silent"
    for path in RUNBOOKS.glob("*.md"):
        if path.stem not in {alert["alert"] for alert in alerts}:
            yield f"{path.relative_to(ROOT)} belongs to no alert"


if __name__ == "__main__":
    found = list(judge())
    print("\n".join(found))
    sys.exit(bool(found))
