//! Getting in: our own identity, the customer's role, the customer's access key.

use super::{Words, advice, told};
use crate::domain::destination::Auth;
use crate::domain::diagnosis::{Case, Code, Found, Remedy, Who};
use crate::domain::policy::{Principal, trust};

pub(super) fn words_of_ours(found: &Found<'_>, who: Who) -> Option<Words> {
    match who {
        Who::Worker => words_of_the_worker(found),
        Who::Command => words_of_the_command(found.code).or_else(|| words_of_the_worker(found)),
    }
}

/// Whoever runs a command has other credentials than the worker as a rule, and must not look for
/// the fault there.
fn words_of_the_command(code: Code) -> Option<Words> {
    let ours = "the customer need not do anything";
    Some(match code {
        Code::IdentityAbsent => told(
            "this command has no AWS credentials: it uses those of its shell, not the worker's, and a role can only be assumed \
             with some",
            advice(format!(
                "give the shell the worker's role or key in the standard AWS way (environment, profile, instance or task role), or \
                 run the command where the worker runs; {ours}"
            )),
        ),
        Code::IdentityRefused => told(
            "AWS refuses the credentials of this command, which are those of its shell, not the worker's: they are unknown, \
             disabled or out of date",
            advice(format!("renew the AWS credentials of the shell; {ours}")),
        ),
        Code::IdentityMayNotAssume => told(
            "the identity of this command (the AWS credentials of its shell) is not allowed to call sts:AssumeRole on the role",
            advice(format!(
                "run the command with the worker's identity, or allow sts:AssumeRole on the customers' roles in the policy of this \
                 one; {ours}"
            )),
        ),
        _ => return None,
    })
}

fn words_of_the_worker(found: &Found<'_>) -> Option<Words> {
    let ours = "the customer need not do anything";
    Some(match found.code {
        Code::IdentityAbsent => told(
            "this worker has no AWS credentials of its own, and a role can only be assumed with some",
            advice(format!(
                "give the worker a role or a key in the standard AWS way (instance or task role, environment, profile), or \
                 use an access key for this destination; {ours}"
            )),
        ),
        Code::IdentityRefused => told(
            "AWS refuses this worker's own credentials: they are unknown, disabled or out of date",
            advice(format!("renew the credentials of the worker; {ours}")),
        ),
        Code::IdentityMayNotAssume => told(
            "this worker's own identity is not allowed to call sts:AssumeRole on the role",
            advice(format!(
                "allow sts:AssumeRole on the customers' roles in the policy of the worker's identity; {ours}"
            )),
        ),
        Code::RoleAuthOff => told(
            "this worker has no AWS identity of its own and may not assume roles (session.role_auth = false)",
            advice("use an access key for this destination, or deliver it with a worker where session.role_auth is on"),
        ),
        Code::AccessKeySecretUnreadable => told(
            super::said(found, "the secret of the access key can't be read"),
            advice("put the secret access key into that file, readable for the worker, or configure another one"),
        ),
        _ => return None,
    })
}

pub(super) fn words(found: &Found<'_>, case: &Case<'_>) -> Option<Words> {
    words_of_ours(found, case.who).or_else(|| words_of_the_role(found, case)).or_else(|| words_of_the_key(found.code))
}

fn words_of_the_role(found: &Found<'_>, case: &Case<'_>) -> Option<Words> {
    let Auth::IamRole { role_arn, external_id } = &case.destination.auth else { return None };
    let role = role_arn.as_str();
    let id = if external_id.is_some() { " with the external id agreed on" } else { "" };
    let us = case.principal.unwrap_or("our principal");
    Some(match found.code {
        Code::RoleDenied => told(
            format!("the role {role} does not let us in: it does not exist, or its trust policy does not allow it"),
            trusting(
                case,
                format!("check that the role exists; its trust policy must allow sts:AssumeRole to {us}{id}"),
            ),
        ),
        Code::RoleNotFound => told(
            format!("there is no role {role}"),
            trusting(
                case,
                format!("create the role, or correct its ARN; its trust policy must allow sts:AssumeRole to {us}{id}"),
            ),
        ),
        Code::RoleExplicitDeny => told(
            format!("a policy explicitly denies that {us} assumes the role {role}"),
            advice(
                "look for a Deny of sts:AssumeRole in the role's trust policy and in the policies of the organization \
                 (service and resource control policies), and let our principal through",
            ),
        ),
        Code::RoleRequestRefused => told(
            super::said(found, "STS refuses the request for the role as invalid"),
            advice("correct the role's ARN; if that is right, shorten the prefix of the destination"),
        ),
        Code::StsRegionDisabled => told(
            format!("STS is not activated in {} for the account of the role", case.destination.region),
            advice("activate STS in that region in the account settings of IAM"),
        ),
        Code::ExternalIdNotEnforced => told(
            format!("the role {role} can be assumed without the external id: its trust policy does not ask for it"),
            trusting(case, "replace the role's trust policy, so that it asks for the external id".to_owned()),
        ),
        Code::ExternalIdAbsent => told(
            format!("the role {role} is assumed without any external id, so whoever makes us use its ARN gets in"),
            advice(
                "agree on an external id, ask for it in the role's trust policy, and configure it as auth.external_id",
            ),
        ),
        Code::SessionRefused => told(
            "S3 refuses the session of the role, though STS has just granted it",
            advice(
                "test again in a minute; if it stays so, look for a policy that revokes older sessions of the role, and check \
                 that the bucket's partition and account are those of the role",
            ),
        ),
        _ => return None,
    })
}

/// A remedy with the trust policy in it, where it is known whom it has to name.
fn trusting(case: &Case<'_>, text: String) -> Remedy {
    let Auth::IamRole { role_arn, external_id } = &case.destination.auth else { return advice(text) };
    let place = format!("the trust policy of the role {}", role_arn.as_str());
    match case.principal.and_then(|arn| Principal::parse(arn).ok()) {
        Some(us) => advice(text).statement(place, trust(&us, external_id.as_ref(), case.egress)),
        None => advice(text),
    }
}

fn words_of_the_key(code: Code) -> Option<Words> {
    let renew = "create a new access key for the IAM user and configure it";
    Some(match code {
        Code::AccessKeyUnknown => told(
            "the access key does not exist, was deleted, or is inactive",
            advice(format!("activate it, or {renew}")),
        ),
        Code::AccessKeyDisabled => told("the access key is disabled", advice(format!("enable it, or {renew}"))),
        Code::AccessKeySecretWrong => told(
            "the secret does not belong to this access key id",
            advice(format!("configure the secret that was shown when the key was made, or {renew}")),
        ),
        Code::AccessKeyRoot => told(
            "the access key is that of the account's root user: it may do everything, and can't be limited",
            advice(
                "create an IAM user with the permissions of this destination alone, use its key, and delete the root key",
            ),
        ),
        Code::AccessKeyTemporary => told(
            "the access key is a temporary one (ASIA...): it ends within hours, and needs a token that is not configured",
            advice("use a role (recommended), or the long-lived key (AKIA...) of an IAM user"),
        ),
        Code::AccountDisabled => told(
            "the account of the bucket is suspended, or not signed up for S3",
            advice(
                "ask the owner of the AWS account to settle that with AWS, in the billing console or by their support",
            ),
        ),
        _ => return None,
    })
}
