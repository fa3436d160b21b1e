//! Getting in: our own identity, the customer's role, the customer's access key.

use super::{Explanation, explained};
use crate::domain::destination::Auth;
use crate::domain::diagnosis::{Code, DiagnosisContext, Evidence, Remedy, Who};
use crate::domain::policy::{Principal, trust};

pub(super) fn words_of_ours(evidence: &Evidence<'_>, who: Who) -> Option<Explanation> {
    match who {
        Who::Worker => words_of_the_worker(evidence),
        Who::Command => words_of_the_command(evidence).or_else(|| words_of_the_worker(evidence)),
    }
}

/// Explains a problem of the own identity. A command usually has other credentials than the worker,
/// so its text names the command's.
fn words_of_the_command(evidence: &Evidence<'_>) -> Option<Explanation> {
    let ours = "no action is needed from the customer";
    Some(match evidence.code {
        Code::IdentityAbsent => explained(
            format!(
                "this command found no AWS credentials in its shell, and needs them to assume a role; it does not \
                 use the worker's{}",
                sdk_said(evidence)
            ),
            format!(
                "give the shell the worker's role or key in the standard AWS way (environment, profile, instance or task role), or \
                 run the command where the worker runs; {ours}"
            ),
        ),
        Code::IdentityRefused => explained(
            "AWS refuses the credentials of this command (those of its shell, not the worker's): they are unknown, disabled or \
             expired",
            format!("renew the AWS credentials of the shell; {ours}"),
        ),
        Code::IdentityMayNotAssume => explained(
            "the identity of this command (the AWS credentials of its shell) is not allowed to call sts:AssumeRole on the role",
            format!(
                "run the command with the worker's identity, or allow sts:AssumeRole on the customers' roles in the policy of this \
                 one; {ours}"
            ),
        ),
        _ => return None,
    })
}

/// Words of the SDK about credentials that it can't load: it knows the profile and the provider.
fn sdk_said(evidence: &Evidence<'_>) -> String {
    let said = evidence.message.split_once(": ").map(|(_, said)| said).filter(|said| !said.is_empty());
    said.map(|said| format!(" ({said})")).unwrap_or_default()
}

fn words_of_the_worker(evidence: &Evidence<'_>) -> Option<Explanation> {
    let ours = "no action is needed from the customer";
    Some(match evidence.code {
        Code::IdentityAbsent => explained(
            format!(
                "this worker has no AWS credentials of its own, and needs them to assume a role{}",
                sdk_said(evidence)
            ),
            format!(
                "give the worker a role or a key in the standard AWS way (instance or task role, environment, profile), or \
                 use an access key for this destination; {ours}"
            ),
        ),
        Code::IdentityRefused => explained(
            "AWS refuses this worker's own credentials: they are unknown, disabled or expired",
            format!("renew the credentials of the worker; {ours}"),
        ),
        Code::IdentityMayNotAssume => explained(
            "this worker's own identity is not allowed to call sts:AssumeRole on the role",
            format!("allow sts:AssumeRole on the customers' roles in the policy of the worker's identity; {ours}"),
        ),
        Code::IdentityMayNotTag => explained(
            "EKS Pod Identity adds session tags to this worker's identity, which need sts:TagSession, and that is \
             denied; without session tags the trust policy of the role is sufficient",
            format!(
                "create the pod identity association with session tags disabled (aws eks create-pod-identity-association \
                 --disable-session-tags); or allow sts:TagSession both in the policy of the worker's identity and in the trust \
                 policy of every customer's role; {ours}"
            ),
        ),
        Code::RoleAuthOff => explained(
            "this worker has no AWS identity of its own and may not assume roles (session.role_auth = false)",
            "use an access key for this destination, or deliver it with a worker where session.role_auth is on",
        ),
        Code::AccessKeySecretUnreadable => explained(
            super::said(evidence, "the secret of the access key can't be read"),
            "put the secret access key into that file, readable for the worker, or configure another one",
        ),
        _ => return None,
    })
}

pub(super) fn words(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    words_of_ours(evidence, context.who)
        .or_else(|| words_of_the_role(evidence, context))
        .or_else(|| words_of_regions(evidence, context))
        .or_else(|| words_of_the_key(evidence.code))
}

fn words_of_the_role(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    let Auth::IamRole { role_arn, external_id } = &context.destination.auth else { return None };
    let role = role_arn.as_str();
    let id = if external_id.is_some() { " with the external id agreed on" } else { "" };
    let us = context.principal.unwrap_or("this platform's principal");
    Some(match evidence.code {
        Code::RoleDenied => explained(
            format!("the role {role} can't be assumed: it does not exist, or its trust policy does not allow it"),
            trusting(
                context,
                format!("check that the role exists; its trust policy must allow sts:AssumeRole to {us}{id}"),
            ),
        ),
        Code::RoleNotFound => explained(
            format!("there is no role {role}"),
            trusting(
                context,
                format!("create the role, or correct its ARN; its trust policy must allow sts:AssumeRole to {us}{id}"),
            ),
        ),
        Code::RoleExplicitDeny => explained(
            format!("a policy explicitly denies {us} sts:AssumeRole on the role {role}"),
            "look for a Deny of sts:AssumeRole in the role's trust policy and in the policies of the \
                 organization (service and resource control policies), and exclude this platform's principal from it",
        ),
        Code::RoleRequestRefused => explained(
            super::said(evidence, "STS refuses the request for the role as invalid"),
            "correct the role's ARN; if that is right, shorten the prefix of the destination; on EKS Pod Identity session tags \
                 take most of the space of a session policy: create the association with session tags disabled; a store such as \
                 Ceph may refuse session policies: set session.policy (or session_policy of the destination) to \"s3\" or \"none\"",
        ),
        Code::StsRegionDisabled => explained(
            format!("STS is not activated in {} for the account of the role", context.destination.region),
            "activate STS in that region in the account settings of IAM",
        ),
        Code::ExternalIdNotEnforced => explained(
            format!("the role {role} can be assumed without the external id: its trust policy does not require it"),
            trusting(context, "replace the role's trust policy with one that requires the external id".to_owned()),
        ),
        Code::ExternalIdAbsent => explained(
            format!(
                "the destination has no external id, so anyone who can make this platform use the ARN of the \
                role {role} can write with it"
            ),
            "agree on an external id, require it in the role's trust policy, and configure it as auth.external_id",
        ),
        Code::SessionRefused => explained(
            "S3 refuses the session of the role that STS has just granted",
            "test again in a minute; if S3 still refuses it, look for a policy that revokes older sessions of \
                 the role, and check that the bucket's partition and account are those of the role",
        ),
        _ => return None,
    })
}

/// Explains regions and partitions where the worker's own identity is not valid.
fn words_of_regions(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    Some(match evidence.code {
        Code::OtherPartition => explained(
            super::said(evidence, "the role belongs to another partition than the region or the worker's identity"),
            "correct the role's ARN or the region of the destination if one of them is wrong; no role can be assumed across \
                 partitions: use an access key, or a worker with an identity in the partition of the role",
        ),
        Code::IdentityUnknownInRegion => explained(
            super::said(
                evidence,
                "STS in the region refuses the worker's credentials; they are valid in other regions",
            ),
            format!(
                "correct the region of the destination if {0} is wrong; if it is an opt-in region, enable it in the account of the \
                 worker, or set aws.region to a region where the worker's credentials are valid, so that STS is called there",
                context.destination.region
            ),
        ),
        _ => return None,
    })
}

/// A remedy with the trust policy in it, where it is known whom it has to name.
fn trusting(context: &DiagnosisContext<'_>, text: String) -> Remedy {
    let Auth::IamRole { role_arn, external_id } = &context.destination.auth else { return Remedy::from(text) };
    let place = format!("the trust policy of the role {}", role_arn.as_str());
    match context.principal.and_then(|arn| Principal::parse(arn).ok()) {
        Some(us) => Remedy::from(text).statement(place, trust(&us, external_id.as_ref(), context.egress)),
        None => Remedy::from(text),
    }
}

fn words_of_the_key(code: Code) -> Option<Explanation> {
    let renew = "create a new access key for the IAM user and configure it";
    Some(match code {
        Code::AccessKeyUnknown => {
            explained("the access key does not exist, was deleted, or is inactive", format!("activate it, or {renew}"))
        }
        Code::AccessKeyDisabled => explained("the access key is disabled", format!("enable it, or {renew}")),
        Code::AccessKeySecretWrong => explained(
            "the secret does not belong to this access key id",
            format!("configure the secret that AWS showed when the key was created, or {renew}"),
        ),
        Code::AccessKeyRoot => explained(
            "the access key belongs to the root user of the account: it has all permissions, and can't be restricted",
            "create an IAM user with only the permissions of this destination, use its key, and delete the root \
                 key",
        ),
        Code::AccessKeyTemporary => explained(
            "the access key is temporary (ASIA...): it expires within hours, and needs a session token, which can't \
             be configured",
            "use a role (recommended), or the long-lived key (AKIA...) of an IAM user",
        ),
        Code::AccountDisabled => explained(
            "the account of the bucket is suspended, or not signed up for S3",
            "ask the owner of the AWS account to reactivate it, in the billing console or with AWS support",
        ),
        _ => return None,
    })
}
