"""The Terraform module can be read, names only what it declares, and grants as little as the CloudFormation template."""

import re
import sys

import hcl2

from metrics import ROOT

MODULE = ROOT / "deploy/aws/terraform"
GRANTED = {"sts:AssumeRole", "s3:GetObject", "s3:ListBucket", "kms:Decrypt"}


def names(blocks):
    return {name.strip('"') for block in blocks for name in block if not name.startswith("__")}


def judge():
    parsed = {path.name: hcl2.loads(path.read_text()) for path in sorted(MODULE.glob("*.tf"))}
    declared = set().union(*(names(file.get("variable", [])) for file in parsed.values()))
    text = "".join(path.read_text() for path in MODULE.glob("*.tf"))
    used = set(re.findall(r"\bvar\.(\w+)", text))
    if len(declared) < 5 or used != declared:
        yield f"variables used and declared differ: {sorted(used ^ declared)}"
    template = (ROOT / "deploy/aws/worker-role.yaml").read_text().split("Policies:")[1]
    granted = {"terraform": set(re.findall(r'"((?:s3|sts|kms):\w+)"', text.split('"worker" {')[1].split("resource ")[0])),
               "cloudformation": set(re.findall(r"Action: (\S+)", template))}
    for kind, actions in granted.items():
        if actions != GRANTED:
            yield f"{kind} grants {sorted(actions)}, not {sorted(GRANTED)}"
    for kind, part in (("terraform", text), ("cloudformation", template)):
        if "aws:ResourceAccount" not in part or "StringNotEquals" not in part:
            yield f"{kind}: roles of our own account are not left out"


if __name__ == "__main__":
    found = list(judge())
    print("\n".join(found))
    sys.exit(bool(found))
