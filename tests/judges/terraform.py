"""The worker's role: the Terraform module can be read, names only what it declares, and grants as little as the CloudFormation
template; both hold in every partition, and tags of a session reach no customer."""

import re
import sys
from itertools import product

import hcl2
import yaml

from metrics import ROOT

DEPLOY = ROOT / "deploy"
MODULE = DEPLOY / "aws/terraform"
TEMPLATE = DEPLOY / "aws/worker-role.yaml"
GRANTED = {"sts:AssumeRole", "s3:GetObject", "s3:ListBucket", "kms:Decrypt"}
# What is written for people may name a partition.
PROSE = re.compile(r"\s*(#|description\b|Description:)")
TAGLESS = "--disable-session-tags"


class Template(yaml.SafeLoader):
    """CloudFormation, with !Name read as Fn::Name."""

    def function(self, name, node):
        sequence = isinstance(node, yaml.SequenceNode)
        return {name if name == "Ref" else f"Fn::{name}": self.construct_sequence(node, deep=True) if sequence else self.construct_scalar(node)}


Template.add_multi_constructor("!", Template.function)


def names(blocks):
    return {name.strip('"') for block in blocks for name in block if not name.startswith("__")}


def evaluated(expression, parameters):
    """An expression of a rule, as CloudFormation evaluates it."""
    if not isinstance(expression, dict):
        return expression
    ((function, inner),) = expression.items()
    if function == "Ref":
        return parameters[inner]
    arguments = [evaluated(one, parameters) for one in inner]
    if function == "Fn::Not":
        return not arguments[0]
    if function == "Fn::EachMemberEquals":
        return all(member == arguments[1] for member in arguments[0])
    raise ValueError(f"{function} is not expected in a rule")


def accepted(rules, parameters):
    applied = [rule for rule in rules.values() if evaluated(rule.get("RuleCondition", True), parameters)]
    return all(evaluated(one["Assert"], parameters) for rule in applied for one in rule["Assertions"])


def role():
    """Terraform and CloudFormation grant the same."""
    parsed = {path.name: hcl2.loads(path.read_text()) for path in sorted(MODULE.glob("*.tf"))}
    declared = set().union(*(names(file.get("variable", [])) for file in parsed.values()))
    text = "".join(path.read_text() for path in MODULE.glob("*.tf"))
    used = set(re.findall(r"\bvar\.(\w+)", text))
    if len(declared) < 5 or used != declared:
        yield f"variables used and declared differ: {sorted(used ^ declared)}"
    template = TEMPLATE.read_text().split("Policies:")[1]
    granted = {"terraform": set(re.findall(r'"((?:s3|sts|kms):\w+)"', text.split('"worker" {')[1].split("resource ")[0])),
               "cloudformation": set(re.findall(r"Action: (\S+)", template))}
    for kind, actions in granted.items():
        if actions != GRANTED:
            yield f"{kind} grants {sorted(actions)}, not {sorted(GRANTED)}"
    for kind, part in (("terraform", text), ("cloudformation", template)):
        if "aws:ResourceAccount" not in part or "StringNotEquals" not in part:
            yield f"{kind}: roles of our own account are not left out"


def partitions():
    """ARNs take the partition from data.aws_partition and AWS::Partition."""
    for path in [TEMPLATE, *sorted(MODULE.glob("*.tf"))]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not PROSE.match(line) and re.search(r"\barn:aws[a-z-]*:", line):
                yield f"{path.name}:{number}: an ARN of one partition"


def staging():
    """Objects without their buckets are refused, and the other way round: a missing object is 403 where the bucket can't be listed."""
    rules = yaml.load(TEMPLATE.read_text(), Template).get("Rules", {})
    given = ([], [""], ["arn:aws:s3:::staging"], ["arn:aws:s3:::a", "arn:aws:s3:::b"])
    for objects, buckets in product(given, given):
        expected = any(objects) == any(buckets)
        if accepted(rules, {"StagingObjects": objects, "StagingBuckets": buckets}) != expected:
            yield f"cloudformation: {'refuses' if expected else 'takes'} StagingObjects {objects} with StagingBuckets {buckets}"


def session_tags():
    """Associations of EKS Pod Identity pass no tags on: customers' trust policies would have to allow sts:TagSession."""
    association = (MODULE / "main.tf").read_text().partition('resource "aws_eks_pod_identity_association"')[2].partition("\n}")[0]
    if not re.search(r"^ *disable_session_tags *= true$", association, re.M):
        yield "terraform: the association has session tags"
    resources = yaml.load(TEMPLATE.read_text(), Template)["Resources"].values()
    associations = [one["Properties"] for one in resources if one["Type"] == "AWS::EKS::PodIdentityAssociation"]
    if not associations or any(one.get("DisableSessionTags") is not True for one in associations):
        yield "cloudformation: the association has session tags"
    for name in ("kubernetes/components/pod-identity/kustomization.yaml", "docs/sre.md"):
        if TAGLESS not in (DEPLOY / name).read_text():
            yield f"{name}: {TAGLESS} is not there"


if __name__ == "__main__":
    found = [what for rules in (role, partitions, staging, session_tags) for what in rules()]
    print("\n".join(found))
    sys.exit(bool(found))
