//! Cache key of a session.

use std::path::PathBuf;
use std::sync::Arc;

use crate::domain::destination::{
    Auth, BucketName, Destination, DestinationIdentity, EncryptionAlgorithm, ExternalId, Prefix, Region, SecretSource,
    SessionPolicyMode,
};

/// Cache key of a session: every input of AssumeRole and of its policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    tenant: Option<String>,
    /// The role's ARN, or the access key id.
    principal: Arc<str>,
    external_id: Option<ExternalId>,
    secret_file: Option<PathBuf>,
    region: Region,
    bucket: BucketName,
    prefix: Prefix,
    kms: Option<Arc<str>>,
    algorithm: Option<EncryptionAlgorithm>,
    policy: Option<SessionPolicyMode>,
    /// Destination of an access key. Roles that agree in all other fields share a session;
    /// destinations with the same access key id and different secrets must not.
    owner: Option<DestinationIdentity>,
}

impl SessionKey {
    /// Key of the session of a destination in this region.
    pub(super) fn of(destination: &Destination, region: &Region) -> Self {
        let mut key = Self {
            tenant: destination.tenant.clone(),
            principal: "".into(),
            external_id: None,
            secret_file: None,
            region: region.clone(),
            bucket: destination.bucket.clone(),
            prefix: destination.prefix.clone(),
            kms: destination.encryption.as_ref().map(|kms| kms.key_arn.as_str().into()),
            algorithm: destination.algorithm,
            policy: destination.session_policy,
            owner: None,
        };
        match &destination.auth {
            Auth::IamRole { role_arn, external_id } => {
                key.principal = role_arn.as_str().into();
                key.external_id.clone_from(external_id);
            }
            Auth::AccessKey { access_key_id, secret } => {
                key.principal = access_key_id.as_str().into();
                key.owner = Some(destination.identity.clone());
                if let SecretSource::File(path) = secret {
                    key.secret_file = Some(path.clone());
                }
            }
        }
        key
    }
}
