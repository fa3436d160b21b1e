//! Access keys: the platform's key, the customers' keys, a read-only key, and the temporary
//! keys of STS.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use uuid::Uuid;

use super::policy::Policy;
use super::{Customer, Way};

/// Time for which expired temporary keys are kept; until then their holder gets the error that
/// they have expired.
const REMEMBERED: Duration = Duration::from_hours(1);

/// A key pair, made up. Its secret is as worthless as the rest, and is not shown by accident all
/// the same.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: String,
}

impl KeyPair {
    /// A new one, of the shape of a long-lived key.
    pub fn invented() -> Self {
        Self { id: format!("AKIADEV{}", word(13)), secret: secret() }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Upper-case random letters and digits.
fn word(length: usize) -> String {
    Uuid::new_v4().simple().to_string().to_uppercase().chars().take(length).collect()
}

fn secret() -> String {
    format!("{}{}", Uuid::new_v4().simple(), word(8))
}

/// Whose key it is.
#[derive(Debug, Clone)]
pub(super) enum SigningPrincipal {
    /// The platform: may assume the customers' roles, and nothing else.
    Platform,
    /// Viewer: may read and list everything.
    Viewer,
    /// A customer's user, or a session of a customer's role with the policy it was narrowed by.
    Customer(Arc<Customer>, Option<Policy>),
}

/// The keys that are good now.
pub(super) struct Keys {
    lasting: HashMap<String, (KeyPair, SigningPrincipal)>,
    sessions: Mutex<HashMap<String, TemporaryKey>>,
    lives: Duration,
}

/// Temporary credentials, as AssumeRole returns them.
#[derive(Clone)]
pub(super) struct TemporaryKey {
    pub(super) pair: KeyPair,
    pub(super) token: String,
    pub(super) ends: SystemTime,
    principal: SigningPrincipal,
}

/// SigningPrincipal of an access key id, and the token that the request must carry.
pub(super) struct Signer {
    pub(super) principal: SigningPrincipal,
    pub(super) token: Option<String>,
}

impl Keys {
    pub(super) fn new(platform: KeyPair, viewer: KeyPair, lives: Duration, customers: &[Arc<Customer>]) -> Self {
        let users = customers.iter().filter_map(|customer| match &customer.way {
            Way::Key(pair) => Some((pair.clone(), SigningPrincipal::Customer(customer.clone(), None))),
            Way::Role { .. } => None,
        });
        let own = [(platform, SigningPrincipal::Platform), (viewer, SigningPrincipal::Viewer)];
        let lasting = users.chain(own).map(|(pair, principal)| (pair.id.clone(), (pair, principal))).collect();
        Self { lasting, sessions: Mutex::default(), lives }
    }

    /// Temporary keys of a customer's role, good for what was asked or what this cloud allows,
    /// whichever is less.
    pub(super) fn issue(&self, customer: Arc<Customer>, policy: Option<Policy>, asked: Duration) -> TemporaryKey {
        let pair = KeyPair { id: format!("ASIADEV{}", word(13)), secret: secret() };
        let token = format!("{}{}", secret(), secret());
        let ends = SystemTime::now() + asked.min(self.lives);
        let principal = SigningPrincipal::Customer(customer, policy);
        let session = TemporaryKey { pair, token, ends, principal };
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, session| session.ends + REMEMBERED > SystemTime::now());
        sessions.insert(session.pair.id.clone(), session.clone());
        session
    }

    /// Returns the principal of this key; `None` for an unknown key.
    pub(super) fn signer(&self, id: &str) -> Option<Signer> {
        if let Some((_, principal)) = self.lasting.get(id) {
            return Some(Signer { principal: principal.clone(), token: None });
        }
        let sessions = self.sessions.lock();
        let session = sessions.get(id)?;
        Some(Signer { principal: session.principal.clone(), token: Some(session.token.clone()) })
    }

    fn secret(&self, id: &str) -> S3Result<SecretKey> {
        if let Some((pair, _)) = self.lasting.get(id) {
            return Ok(pair.secret.as_str().into());
        }
        match self.sessions.lock().get(id) {
            Some(session) if session.ends > SystemTime::now() => Ok(session.pair.secret.as_str().into()),
            Some(_) => Err(s3_error!(ExpiredToken, "The provided token has expired.")),
            None => {
                Err(s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records."))
            }
        }
    }
}

/// The signer of requests, for the service.
pub(super) struct KeyGuard(pub(super) Arc<Keys>);

#[async_trait]
impl S3Auth for KeyGuard {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.0.secret(access_key)
    }
}
