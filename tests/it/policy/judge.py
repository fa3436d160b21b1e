"""Judges templates that `consign policy` printed, and gives the IAM documents in them as JSON.

On stdin a list of {"kind": "cloudformation" (judged by cfn-lint) or "terraform" (by python-hcl2), "text": the template, "told":
{parameter: value}}. The answer is a list of {"name": ..., "trust": document or null, "policies": [documents that are in
force]}, parameters at their defaults unless told otherwise. What is wrong with a template ends this with an error.
"""

import json
import re
import sys


def cloudformation(text, told):
    from cfnlint import api

    found = api.lint(text, regions=["eu-central-1"])
    assert not found, "\n".join(map(str, found))
    template = json.loads(text)
    values = {name: parameter["Default"] for name, parameter in template["Parameters"].items()}
    for name, value in told.items():
        pattern = template["Parameters"][name].get("AllowedPattern", ".*")
        assert re.fullmatch(pattern, value), f"{value} is not allowed for {name}"
        values[name] = value

    def resolved(node):
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        if list(node) == ["Ref"]:
            return values.get(node["Ref"], node["Ref"])
        if list(node) == ["Fn::If"]:
            name, yes, no = node["Fn::If"]
            return resolved(yes if holds(name) else no)
        if list(node) == ["Fn::Equals"]:
            left, right = resolved(node["Fn::Equals"])
            return left == right
        if list(node) == ["Fn::Not"]:
            return not resolved(node["Fn::Not"])[0]
        return {key: resolved(value) for key, value in node.items()}

    def holds(name):
        return resolved(template["Conditions"][name])

    answer = {"name": None, "trust": None, "policies": []}
    for resource in template["Resources"].values():
        if "Condition" in resource and not holds(resource["Condition"]):
            continue
        properties = resolved(resource["Properties"])
        if resource["Type"] in ("AWS::IAM::Role", "AWS::IAM::User"):
            answer["name"] = properties.get("RoleName") or properties["UserName"]
            answer["trust"] = properties.get("AssumeRolePolicyDocument")
        else:
            holder = properties.get("RoleName") or properties["Users"][0]
            assert holder in ("Role", "User"), f"a policy of {holder}"
            answer["policies"].append(properties["PolicyDocument"])
    return answer


def terraform(text, told):
    import hcl2

    parsed = hcl2.loads(text)
    bare = lambda name: name.strip('"')
    values = {}
    for block in parsed["variable"]:
        for name, variable in block.items():
            values[bare(name)] = variable["default"]
    values.update((name, json.dumps(value)) for name, value in told.items())

    def scalar(value):
        """What an expression in our templates comes to: a literal, or a reference to a variable."""
        if isinstance(value, str) and (found := re.fullmatch(r"\$\{var\.(\w+)\}", value)):
            value = values[found.group(1)]
        return json.loads(value) if isinstance(value, str) and value.startswith('"') else value

    def counted(expression):
        condition = expression.removeprefix("${").removesuffix("}").removesuffix(" ? 1 : 0")
        if found := re.fullmatch(r'var\.(\w+) != ""', condition):
            return values[found.group(1)] != '""'
        return values[re.fullmatch(r"var\.(\w+)", condition).group(1)] in (True, "true", '"true"')

    def document(value):
        lines = value.strip('"').splitlines()
        assert lines[0] == "<<-JSON" and lines[-1].strip() == "JSON", value
        body = "\n".join(lines[1:-1])
        body = re.sub(r"(?<!\$)\$\{var\.(\w+)\}", lambda found: json.loads(values[found.group(1)]), body)
        assert not re.search(r"(?<!\$)\$\{|(?<!%)%\{", body), "a text would be taken for an expression"
        return json.loads(body.replace("$${", "${").replace("%%{", "%{"))

    answer = {"name": None, "trust": None, "policies": []}
    for block in parsed["resource"]:
        for kind, named in block.items():
            for resource in named.values():
                if not isinstance(resource, dict) or ("count" in resource and not counted(resource["count"])):
                    continue
                if bare(kind) in ("aws_iam_role", "aws_iam_user"):
                    answer["name"] = scalar(resource["name"])
                    if "assume_role_policy" in resource:
                        answer["trust"] = document(resource["assume_role_policy"])
                elif "policy" in resource:
                    answer["policies"].append(document(resource["policy"]))
    return answer


JUDGES = {"cloudformation": cloudformation, "terraform": terraform}
print(json.dumps([JUDGES[case["kind"]](case["text"], case["told"]) for case in json.load(sys.stdin)]))
