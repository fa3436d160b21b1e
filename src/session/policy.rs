//! The session policy of a destination, as far as its STS takes one.

use super::key::SessionKey;
use super::{Sessions, assume};
use crate::domain::destination::{Destination, Region, SessionPolicyMode};
use crate::domain::outcome::{Failure, Reason};
use crate::domain::policy::{PolicyForm, session_policy_in};

impl Sessions {
    /// Returns the session policy to send; `None` where none is wanted.
    pub(super) fn session_policy(&self, destination: &Destination, region: &Region) -> Option<String> {
        let form = self.policy_form(destination, &SessionKey::of(destination, region))?;
        Some(session_policy_in(destination, form))
    }

    /// Returns the form of the session policy: what is configured, narrowed by what STS refused
    /// before.
    pub(super) fn policy_form(&self, destination: &Destination, key: &SessionKey) -> Option<PolicyForm> {
        let learnt = self.policy_forms.get(key).unwrap_or_default();
        match destination.session_policy.unwrap_or(self.config.policy) {
            SessionPolicyMode::None => None,
            SessionPolicyMode::S3 => Some(PolicyForm { without_kms: true, ..learnt }),
            SessionPolicyMode::Full => Some(learnt),
        }
    }

    /// Returns true if STS of a destination refused the statement on KMS keys, so that its sessions
    /// go without.
    pub fn goes_without_kms(&self, destination: &Destination) -> bool {
        let key = SessionKey::of(destination, &self.region(destination));
        self.policy_forms.get(&key).is_some_and(|form| form.without_kms)
    }

    /// Remembers the form that STS took after it had refused a wider one.
    pub(super) fn learn_policy_form(&self, destination: &Destination, key: SessionKey, form: PolicyForm) {
        if form.without_kms && !self.policy_forms.get(&key).is_some_and(|known| known.without_kms) {
            tracing::warn!(
                event = "session_policy_reduced",
                destination = %destination.id,
                next = "sessions of this destination go without KMS actions",
                remedy = "set session.policy = \"s3\"",
                "STS refuses a session policy with KMS actions"
            );
        }
        self.policy_forms.insert(key, form);
    }
}

/// Returns the next narrower form to try after STS refused `form`, if its answer may be about the
/// policy. Every form allows less than the one before, so none widens a session.
pub(super) fn narrower(form: PolicyForm, failure: &Failure) -> Option<PolicyForm> {
    if assume::is_policy_too_large(failure) && !form.smaller {
        return Some(PolicyForm { smaller: true, ..form });
    }
    (refuses_policy(failure) && !form.without_kms).then_some(PolicyForm { without_kms: true, ..form })
}

/// Returns true if STS refuses the policy, or the request without saying why. Ceph's STS does the
/// latter for actions that it does not know.
fn refuses_policy(failure: &Failure) -> bool {
    let Some(answer) = failure.answer.as_deref() else { return false };
    let unsaid = answer.code.is_empty() || answer.message.is_empty();
    answer.code.starts_with("MalformedPolicyDocument")
        || (answer.status == 400 && unsaid && failure.reason == Reason::AssumeRoleDenied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::AwsError;

    fn refused(status: u16, code: &str, message: &str) -> Failure {
        let answer = AwsError::new("AssumeRole", status, Some(code), Some(message));
        Failure { answer: Some(Box::new(answer)), ..Failure::new(Reason::AssumeRoleDenied, "refused") }
    }

    #[test]
    fn a_refused_policy_is_narrowed_once_in_each_way() {
        let full = PolicyForm::default();
        let without_kms = PolicyForm { without_kms: true, ..full };
        let smaller = PolicyForm { smaller: true, ..full };
        let both = PolicyForm { without_kms: true, smaller: true };
        for (failure, from, next) in [
            (refused(400, "MalformedPolicyDocument", "no such action"), full, Some(without_kms)),
            (refused(400, "MalformedPolicyDocument", "no such action"), without_kms, None),
            (refused(400, "", ""), full, Some(without_kms)),
            (refused(400, "InvalidArgument", ""), full, Some(without_kms)),
            (refused(400, "ValidationError", "the ARN is wrong"), full, None),
            (refused(403, "AccessDenied", ""), full, None),
            (refused(403, "", ""), full, None),
            (refused(400, "PackedPolicyTooLarge", "too large"), full, Some(smaller)),
            (refused(400, "PackedPolicyTooLarge", "too large"), smaller, None),
            (refused(400, "MalformedPolicyDocument", "no"), smaller, Some(both)),
        ] {
            assert_eq!(narrower(from, &failure), next, "{failure:?} of {from:?}");
        }
        assert_eq!(narrower(full, &Failure::new(Reason::StsUnavailable, "no answer")), None);
    }
}
