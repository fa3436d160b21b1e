//! Principal that a customer creates in IAM: a role the platform assumes, or a user whose access
//! key it holds.

use serde_json::Value;

use super::document::{Scope, document, statements};
use super::grants::kms_statement_on;
use super::permission::{Need, Permission};
use crate::domain::destination::{Auth, Destination, RoleArn};

/// The longest name of a role or user.
const NAME_LIMIT: usize = 64;

/// Principal that gets the permissions, as a template creates it.
#[derive(Debug, Clone, PartialEq)]
pub enum Party {
    /// A role with its trust policy.
    Role {
        /// The name without its path.
        name: String,
        /// Its path in IAM, `/` or `/.../`.
        path: String,
        /// The document that says who may assume it.
        trust: Value,
    },
    /// A user; its access key is made by hand, because a template would keep the secret.
    User {
        /// The user's name.
        name: String,
    },
}

impl Party {
    /// The role of a destination, called as configured.
    pub fn role(arn: &RoleArn, trust: Value) -> Self {
        let (_, whole) = arn.as_str().split_once(":role/").unwrap_or_default();
        let (path, name) = whole.rsplit_once('/').map_or(("/".to_owned(), whole), |(p, n)| (format!("/{p}/"), n));
        Self::Role { name: name.to_owned(), path, trust }
    }

    /// A user for a destination that is reached by an access key.
    pub fn user(destination: &Destination) -> Self {
        Self::User { name: format!("consign-{}", destination.id).chars().take(NAME_LIMIT).collect() }
    }

    /// The role of a destination with this trust policy, or a user where it is reached by an access
    /// key.
    pub fn of(destination: &Destination, trust: Option<Value>) -> Self {
        match (&destination.auth, trust) {
            (Auth::IamRole { role_arn, .. }, Some(trust)) => Self::role(role_arn, trust),
            _ => Self::user(destination),
        }
    }
}

/// Permissions as a template needs them: each a whole document.
pub(super) struct TemplateDocuments {
    /// Required permissions.
    pub(super) required: Value,
    /// Optional permissions; `None` when none is granted.
    pub(super) optional: Option<Value>,
    /// Permissions on a KMS key of the bucket's default encryption, where the destination names no
    /// key; the key's ARN is still to be put in its place.
    pub(super) default_key: Option<Value>,
}

impl TemplateDocuments {
    /// `key_arn` is how the template refers to the key of the default encryption.
    pub(super) fn of(destination: &Destination, scope: &Scope, key_arn: &Value) -> Self {
        let required = Scope { optional: false, ..scope.clone() };
        let optional = |permission: Permission| permission.need(destination) == Need::Optional;
        let optional = statements(destination, scope, optional);
        let default_key = destination.may_use_default_key().then(|| {
            let mut statement = kms_statement_on(destination, None);
            statement["Resource"] = key_arn.clone();
            document(&[statement])
        });
        Self {
            required: super::permissions(destination, &required),
            optional: (!optional.is_empty()).then(|| document(&optional)),
            default_key,
        }
    }
}
