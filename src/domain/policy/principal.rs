//! Principal of a policy: an account, a role or a user.

use std::sync::Arc;

use crate::domain::destination::{Invalid, RoleArn, is_iam_name, split_arn};

/// The ARN of a role, a user or a whole account, as the `Principal` of a policy takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    text: Arc<str>,
    partition: Arc<str>,
    account: Arc<str>,
}

impl Principal {
    /// Parses the ARN of a role, a user or an account (`:root`). What GetCallerIdentity says of a
    /// session (`arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION`) is taken as its role; a path of
    /// that role is not in there and so lost. The error's field is `principal`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let arn = split_arn(text).filter(|arn| arn.region.is_empty());
        let text = arn.as_ref().and_then(|arn| match (arn.service, arn.resource.split_once('/')) {
            ("iam", None) if arn.resource == "root" => Some(text.to_owned()),
            ("iam", Some(("role" | "user", name))) if is_iam_name(name) => Some(text.to_owned()),
            ("sts", Some(("assumed-role", session))) => {
                let (role, _) = session.split_once('/').filter(|(role, _)| is_iam_name(role))?;
                Some(format!("arn:{}:iam::{}:role/{role}", arn.partition, arn.account))
            }
            _ => None,
        });
        let (Some(arn), Some(text)) = (arn, text) else {
            let problem = "is not a principal; give the ARN of a role, a user or an account, such as \
                \"arn:aws:iam::123456789012:role/name\" or \"arn:aws:iam::123456789012:root\"";
            return Err(Invalid::new("principal", problem));
        };
        Ok(Self { text: text.into(), partition: arn.partition.into(), account: arn.account.into() })
    }

    /// The ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `aws`, `aws-cn`, `aws-us-gov`. No role of another partition can trust it.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The 12 digits of its account.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The name of a user; `None` for anybody else.
    pub fn user(&self) -> Option<&str> {
        let (_, name) = self.text.split_once(":user/")?;
        name.rsplit('/').next()
    }
}

impl From<&RoleArn> for Principal {
    fn from(role: &RoleArn) -> Self {
        let account = role.account().as_str();
        Self { text: role.as_str().into(), partition: role.partition().into(), account: account.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_users_and_accounts_are_principals() {
        for text in [
            "arn:aws:iam::123456789012:role/path/name",
            "arn:aws-cn:iam::123456789012:user/name",
            "arn:aws-us-gov:iam::123456789012:root",
        ] {
            assert_eq!(Principal::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_session_stands_for_its_role() {
        let session = Principal::parse("arn:aws-cn:sts::123456789012:assumed-role/worker/i-0123").unwrap();
        assert_eq!(session.as_str(), "arn:aws-cn:iam::123456789012:role/worker");
        assert_eq!((session.partition(), session.account()), ("aws-cn", "123456789012"));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "*",
            "123456789012",
            "arn:aws:iam::12345:role/name",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role/*",
            "arn:aws:iam::123456789012:user/${aws:username}",
            "arn:aws:sts::123456789012:assumed-role/*/session",
            "arn:aws:iam::123456789012:group/g",
            "arn:aws:s3:::bucket",
            "arn:aws:sts::123456789012:assumed-role/",
            "arn:aws:sts::123456789012:federated-user/name",
        ] {
            assert_eq!(Principal::parse(text).unwrap_err().field, "principal", "{text}");
        }
    }
}
