"""The dashboard: ids, data source, and expressions that Prometheus can read and the worker can answer."""

import json
import re
import subprocess
import sys
import tempfile

from metrics import ROOT, exported, problems

DASHBOARD = ROOT / "deploy/grafana/consign.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def plain(expression, interval="1m"):
    """The expression as Grafana sends it, with all of every variable chosen."""
    return re.sub(r"\$(instance|destination)\b", ".*", expression.replace("$__rate_interval", interval))


def panels():
    return json.loads(DASHBOARD.read_text())["panels"]


def targets():
    """(panel, target) of every query."""
    return [(panel, target) for panel in panels() for target in panel.get("targets", [])]


def judge_form(board):
    if board.get("uid") != "consign":
        yield "the uid is not `consign`: links to the dashboard would break"
    ids = [panel["id"] for panel in board["panels"]]
    if len(ids) != len(set(ids)):
        yield f"panels share an id: {sorted(i for i in set(ids) if ids.count(i) > 1)}"
    variables = {v["name"]: v for v in board["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        yield "there is no variable `datasource`"
    owners = [p for p in board["panels"] if p["type"] != "row"] + [v for v in variables.values() if v["type"] == "query"]
    for owner in owners + [target for _, target in targets()]:
        if owner.get("datasource") != SOURCE:
            yield f"{owner.get('title') or owner.get('name') or owner.get('expr')}: the data source is not the variable's"
    for panel in (p for p in board["panels"] if p["type"] != "row"):
        if not panel.get("description") or not panel.get("targets"):
            yield f"{panel['title']}: without a description, or without a query"
    for used in set(re.findall(r"\$(?!__)\{?(\w+)", DASHBOARD.read_text())) - variables.keys():
        yield f"the variable {used} is not defined"
    for left, right in overlaps([p["gridPos"] | {"title": p["title"]} for p in board["panels"]]):
        yield f"{left} and {right} overlap"


def overlaps(boxes):
    for i, a in enumerate(boxes):
        for b in boxes[i + 1:]:
            if a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
                yield a["title"], b["title"]


def judge_expressions():
    known = exported()
    for panel, target in targets():
        yield from (f"{panel['title']}: {problem}" for problem in problems(target["expr"], known))
    rules = [{"record": f"dashboard:expression{i}", "expr": plain(target["expr"])} for i, (_, target) in enumerate(targets())]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        told = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    if told.returncode or f"{len(rules)} rules found" not in told.stdout:
        yield told.stdout + told.stderr


if __name__ == "__main__":
    found = [*judge_form(json.loads(DASHBOARD.read_text())), *judge_expressions()]
    print("\n".join(found))
    sys.exit(bool(found))
