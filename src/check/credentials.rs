//! Steps up to a session: the worker's identity and the customer's role, or the customer's access
//! key.

use super::report::{StepName, StepResult};
use super::run::CheckRun;
use crate::domain::destination::Auth;
use crate::domain::diagnosis::Code;
use crate::domain::outcome::{AwsError, Failure, Reason};
use crate::domain::policy::Principal;

impl CheckRun<'_> {
    /// Runs the steps up to a session. If one fails, the rest of the test is blocked.
    pub(super) async fn credentials(&mut self) {
        match &self.destination.auth {
            Auth::IamRole { external_id, .. } => {
                self.identity().await;
                self.assume_role().await;
                self.external_id(external_id.is_some()).await;
                self.skipped(StepName::AccessKey, Code::NotNeeded, "the destination has a role");
            }
            Auth::AccessKey { access_key_id, .. } => {
                for name in [StepName::Identity, StepName::AssumeRole, StepName::ExternalId] {
                    self.skipped(name, Code::NotNeeded, "the destination has an access key");
                }
                self.access_key(access_key_id).await;
                self.key_session().await;
            }
        }
    }

    async fn identity(&mut self) {
        let sessions = self.checker.sessions;
        if !sessions.role_auth() {
            self.blocked = true;
            return self.finding(StepName::Identity, StepResult::Failed, Code::RoleAuthOff);
        }
        match self.within_limit(sessions.own_arn(Some(self.destination))).await {
            Ok(None) => {
                self.principal = sessions.identity_role();
                let cause = "this STS does not know GetCallerIdentity; the next step shows if it accepts the worker";
                self.skipped(StepName::Identity, Code::NotTried, cause);
            }
            Ok(Some(arn)) => {
                // A trust policy names the role behind a session.
                let principal = Principal::parse(&arn).map_or(arn, |principal| principal.as_str().to_owned());
                let principal = sessions.identity_role().unwrap_or(principal);
                let cause = format!("the worker's identity is {principal}");
                self.principal = Some(principal);
                self.passed(StepName::Identity, cause);
            }
            Err(failure) => {
                self.blocked = true;
                self.failed(StepName::Identity, &failure);
            }
        }
    }

    async fn assume_role(&mut self) {
        if self.blocked {
            return self.skip_blocked(&[StepName::AssumeRole]);
        }
        match self.within_limit(self.checker.sessions.fresh(self.destination)).await {
            Ok(_) if self.checker.sessions.goes_without_kms(self.destination) => {
                let cause = "the role can be assumed; STS refuses KMS actions in a session policy, so they are left \
                    out (session.policy = \"s3\" avoids the refused request)";
                self.passed(StepName::AssumeRole, cause);
            }
            Ok(_) => self.passed(StepName::AssumeRole, "the role can be assumed"),
            Err(failure) => {
                self.blocked = true;
                self.failed(StepName::AssumeRole, &as_sts_failure(failure));
            }
        }
    }

    async fn external_id(&mut self, agreed: bool) {
        if self.blocked {
            return self.skip_blocked(&[StepName::ExternalId]);
        }
        if !agreed {
            return self.finding(StepName::ExternalId, StepResult::Warning, Code::ExternalIdAbsent);
        }
        match self.within_limit(self.checker.sessions.open_without_external_id(self.destination)).await {
            Ok(true) => self.finding(StepName::ExternalId, StepResult::Warning, Code::ExternalIdNotEnforced),
            Ok(false) => self.passed(StepName::ExternalId, "the role can't be assumed without the external id"),
            Err(_) => self.skipped(StepName::ExternalId, Code::NotTried, "STS gave no conclusive answer"),
        }
    }

    /// Opens the session of an access key. That needs no call; it fails only if the secret cannot
    /// be read.
    async fn key_session(&mut self) {
        if self.blocked {
            return;
        }
        if let Err(failure) = self.within_limit(self.checker.sessions.fresh(self.destination)).await {
            self.blocked = true;
            self.failed(StepName::AccessKey, &failure);
        }
    }

    async fn access_key(&mut self, id: &str) {
        if self.checker.sessions.has_sts() && id.starts_with("ASIA") {
            self.blocked = true;
            return self.finding(StepName::AccessKey, StepResult::Failed, Code::AccessKeyTemporary);
        }
        match self.within_limit(self.checker.sessions.key_arn(self.destination)).await {
            Ok(None) => self.skipped(StepName::AccessKey, Code::NotNeeded, "the store has no STS"),
            Ok(Some(arn)) if arn.ends_with(":root") => {
                self.principal = Some(arn);
                self.finding(StepName::AccessKey, StepResult::Warning, Code::AccessKeyRoot);
            }
            Ok(Some(arn)) => {
                let cause = format!("the key belongs to {arn}");
                self.principal = Some(arn);
                self.passed(StepName::AccessKey, cause);
            }
            Err(failure) if is_about_the_key(&failure) => {
                self.blocked = true;
                self.failed(StepName::AccessKey, &failure);
            }
            // A transfer with an access key never calls STS, so an unavailable or closed STS is no
            // obstacle.
            Err(_) => {
                let cause = "STS did not answer; deliveries with an access key do not need it";
                self.skipped(StepName::AccessKey, Code::NotTried, cause);
            }
        }
    }
}

/// Returns true if STS has rejected the key, or if its secret cannot be read. An STS that denies
/// all access (by an endpoint's policy, or in this region) says nothing about the key.
fn is_about_the_key(failure: &Failure) -> bool {
    let closed = |answer: &AwsError| matches!(answer.code.as_str(), "AccessDenied" | "AccessDeniedException");
    match failure.reason {
        Reason::AccessKeyInvalid | Reason::ClockSkew => true,
        Reason::IdentityDenied => !failure.answer.as_deref().is_some_and(closed),
        _ => false,
    }
}

/// Attributes a timeout to STS instead of S3.
fn as_sts_failure(failure: Failure) -> Failure {
    match failure.reason {
        Reason::Timeout => Failure { reason: Reason::StsUnavailable, ..failure },
        _ => failure,
    }
}
