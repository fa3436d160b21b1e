//! Getting in: our identity and the customer's role, or the customer's access key.

use super::{Mark, Run, StepName};
use crate::domain::destination::Auth;
use crate::domain::diagnosis::Code;
use crate::domain::outcome::{AwsError, Failure, Reason};
use crate::domain::policy::Principal;

impl Run<'_> {
    /// The steps up to a session. When one fails, the rest is blocked.
    pub(super) async fn entry(&mut self) {
        match &self.destination.auth {
            Auth::IamRole { external_id, .. } => {
                self.identity().await;
                self.assume().await;
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
            return self.remark(StepName::Identity, Mark::Failed, Code::RoleAuthOff);
        }
        match self.within(sessions.own_arn(Some(self.destination))).await {
            Ok(arn) => {
                // What a trust policy names is the role behind a session.
                let principal = Principal::parse(&arn).map_or(arn, |principal| principal.as_str().to_owned());
                let principal = sessions.identity_role().unwrap_or(principal);
                let what = format!("we come as {principal}");
                self.principal = Some(principal);
                self.passed(StepName::Identity, what);
            }
            Err(failure) => {
                self.blocked = true;
                self.failed(StepName::Identity, &failure);
            }
        }
    }

    async fn assume(&mut self) {
        if self.blocked {
            return self.skip(&[StepName::AssumeRole]);
        }
        match self.within(self.checker.sessions.fresh(self.destination)).await {
            Ok(_) => self.passed(StepName::AssumeRole, "the role lets us in"),
            Err(failure) => {
                self.blocked = true;
                self.failed(StepName::AssumeRole, &sts(failure));
            }
        }
    }

    async fn external_id(&mut self, agreed: bool) {
        if self.blocked {
            return self.skip(&[StepName::ExternalId]);
        }
        if !agreed {
            return self.remark(StepName::ExternalId, Mark::Warning, Code::ExternalIdAbsent);
        }
        match self.within(self.checker.sessions.open_without_external_id(self.destination)).await {
            Ok(true) => self.remark(StepName::ExternalId, Mark::Warning, Code::ExternalIdNotEnforced),
            Ok(false) => self.passed(StepName::ExternalId, "without the external id the role does not let us in"),
            Err(_) => self.skipped(StepName::ExternalId, Code::NotTried, "STS gave no clear answer"),
        }
    }

    /// The session of an access key needs no call; only its secret may be unreadable.
    async fn key_session(&mut self) {
        if self.blocked {
            return;
        }
        if let Err(failure) = self.within(self.checker.sessions.fresh(self.destination)).await {
            self.blocked = true;
            self.failed(StepName::AccessKey, &failure);
        }
    }

    async fn access_key(&mut self, id: &str) {
        if self.checker.sessions.has_sts() && id.starts_with("ASIA") {
            self.blocked = true;
            return self.remark(StepName::AccessKey, Mark::Failed, Code::AccessKeyTemporary);
        }
        match self.within(self.checker.sessions.key_arn(self.destination)).await {
            Ok(None) => self.skipped(StepName::AccessKey, Code::NotNeeded, "the store has no STS to ask"),
            Ok(Some(arn)) if arn.ends_with(":root") => {
                self.principal = Some(arn);
                self.remark(StepName::AccessKey, Mark::Warning, Code::AccessKeyRoot);
            }
            Ok(Some(arn)) => {
                let what = format!("the key is that of {arn}");
                self.principal = Some(arn);
                self.passed(StepName::AccessKey, what);
            }
            Err(failure) if is_about_the_key(&failure) => {
                self.blocked = true;
                self.failed(StepName::AccessKey, &failure);
            }
            // A transfer with an access key never asks STS, so that it is away, or not for us, is no obstacle.
            Err(_) => {
                self.skipped(StepName::AccessKey, Code::NotTried, "STS gives no answer; deliveries don't need it");
            }
        }
    }
}

/// Whether STS has judged the key, or its secret can't be read. That STS itself is closed to us (by an endpoint's policy, or in
/// this region) says nothing of the key.
fn is_about_the_key(failure: &Failure) -> bool {
    let closed = |answer: &AwsError| matches!(answer.code.as_str(), "AccessDenied" | "AccessDeniedException");
    match failure.reason {
        Reason::AccessKeyInvalid | Reason::ClockSkew => true,
        Reason::IdentityDenied => !failure.answer.as_deref().is_some_and(closed),
        _ => false,
    }
}

/// A call of STS that took too long is one of STS, not of S3.
fn sts(failure: Failure) -> Failure {
    match failure.reason {
        Reason::Timeout => Failure { reason: Reason::StsUnavailable, ..failure },
        _ => failure,
    }
}
