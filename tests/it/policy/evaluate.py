"""What an IAM evaluator by somebody else (ministack's) makes of documents, for what no server enforces: the permissions on keys.

On stdin a list of questions: {"principal", "action", "resource", "context": {condition key: value}, "source_ip", "identity":
document, "session": session policy or null, "key_policy": document or null}. The answer is a list of [what the identity's
policies say, what the key's policy says]: "Allow", "Deny" or "ImplicitDeny", null without a key policy.
"""

import json
import sys

from ministack.core.iam_evaluator import EvalContext, evaluate, evaluate_resource_policy, parse_policy_document


def answer(question):
    context = EvalContext(
        principal_arn=question["principal"],
        principal_type="AssumedRole",
        principal_account=question["principal"].split(":")[4],
        action=question["action"],
        resource_arn=question["resource"],
        region="eu-central-1",
        source_ip=question["source_ip"],
        secure_transport=True,
        service_context={key.lower(): value for key, value in question["context"].items()},
    )
    limits = [[parse_policy_document(question["session"])]] if question["session"] else []
    identity = evaluate(context, [parse_policy_document(question["identity"])], *limits)
    key = evaluate_resource_policy(question["key_policy"], context) if question["key_policy"] else None
    return [identity.decision, key and key.decision]


print(json.dumps([answer(question) for question in json.load(sys.stdin)]))
