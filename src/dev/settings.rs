//! The customers of `consign dev`, and the configuration they stand in. The worker is run from this
//! very file, so that what an `enqueue` in another terminal reads is the truth.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::cloud::{CloudPlan, Customer, InjectedFault, KeyPair, Way};
use super::home::Home;
use crate::config::{Config, ConfigProblems, LogConfig, LogFormat, load_from};

/// The region of the platform and of `acme`.
pub(super) const REGION: &str = "eu-central-1";
/// The destination with a role.
pub(super) const ACME: &str = "acme";
/// The destination with an access key.
pub(super) const GLOBEX: &str = "globex";
/// The bucket of `acme`.
pub(super) const ACME_BUCKET: &str = "acme-exports";
const ACME_PREFIX: &str = "platform/";
const ACME_ACCOUNT: &str = "123456789012";
const ACME_ROLE: &str = "arn:aws:iam::123456789012:role/platform-export";
const ACME_KMS_KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/0e7e9fb9-6aa2-4a5b-8a0a-3a2d8d6b6a11";
/// The bucket of `globex`.
pub(super) const GLOBEX_BUCKET: &str = "globex-landing-zone";
const GLOBEX_PREFIX: &str = "imports/";
const GLOBEX_REGION: &str = "eu-west-1";
const GLOBEX_ACCOUNT: &str = "210987654321";

/// Every secret of one start, made up.
#[derive(Debug)]
pub(super) struct Secrets {
    /// The platform's own key.
    pub(super) platform: KeyPair,
    /// The key that may look on.
    pub(super) viewer: KeyPair,
    globex: KeyPair,
    external_id: String,
}

impl Secrets {
    pub(super) fn invented() -> Self {
        let external_id = uuid::Uuid::new_v4().to_string();
        Self { platform: KeyPair::invented(), viewer: KeyPair::invented(), globex: KeyPair::invented(), external_id }
    }

    /// The cloud these secrets open. `injected_fault` is a key below the prefix of `acme`, and the
    /// part of it that is refused once.
    pub(super) fn plan(&self, injected_fault: Option<(&str, i32)>) -> CloudPlan {
        let acme = Customer {
            bucket: ACME_BUCKET.to_owned(),
            prefix: ACME_PREFIX.to_owned(),
            region: REGION.to_owned(),
            account: ACME_ACCOUNT.to_owned(),
            way: Way::Role { arn: ACME_ROLE.to_owned(), external_id: self.external_id.clone() },
            kms_key_arn: Some(ACME_KMS_KEY.to_owned()),
        };
        let globex = Customer {
            bucket: GLOBEX_BUCKET.to_owned(),
            prefix: GLOBEX_PREFIX.to_owned(),
            region: GLOBEX_REGION.to_owned(),
            account: GLOBEX_ACCOUNT.to_owned(),
            way: Way::Key(self.globex.clone()),
            kms_key_arn: None,
        };
        CloudPlan {
            customers: vec![acme, globex],
            platform: self.platform.clone(),
            viewer: self.viewer.clone(),
            session_lives: Duration::from_hours(1),
            injected_fault: injected_fault
                .map(|(key, part)| InjectedFault { key: format!("{ACME_PREFIX}{key}"), part }),
        }
    }

    /// The configuration file. Strings of JSON are strings of TOML, too.
    pub(super) fn toml(&self, home: &Home, cloud: &str, admin: SocketAddr) -> String {
        let queue = json!(format!("sqlite:{}", home.queue().display()));
        let admin = json!(admin.to_string());
        format!(
            include_str!("settings.toml"),
            queue = queue,
            region = REGION,
            cloud = cloud,
            admin = admin,
            acme = ACME,
            acme_bucket = ACME_BUCKET,
            acme_prefix = ACME_PREFIX,
            acme_kms_key = ACME_KMS_KEY,
            acme_role = ACME_ROLE,
            external_id = self.external_id,
            globex = GLOBEX,
            globex_bucket = GLOBEX_BUCKET,
            globex_region = GLOBEX_REGION,
            globex_prefix = GLOBEX_PREFIX,
            globex_account = GLOBEX_ACCOUNT,
            key_id = self.globex.id,
            key_secret = self.globex.secret,
        )
    }
}

/// The configuration of that file. The environment has no say in it.
pub(super) fn load(home: &Home) -> Result<Config, ConfigProblems> {
    load_from(&[home.config()], [], &[]).map(|loaded| loaded.config)
}

/// Log filter: errors of the program itself. Ended transfers are printed anyway, and the
/// refusals of the embedded S3 are what it is there for.
pub fn log() -> LogConfig {
    let filter = "warn,consign::worker=error,s3s=off,s3s_fs=off".to_owned();
    LogConfig { format: LogFormat::Text, filter, otlp_endpoint: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::destination::Auth;

    #[test]
    fn the_written_configuration_is_valid_and_complete() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("with \"quotes\" and \\");
        let home = Home::open(Some(&odd)).unwrap();
        let secrets = Secrets::invented();
        let admin = SocketAddr::from(([127, 0, 0, 1], 9464));
        home.write_config(&secrets.toml(&home, "http://127.0.0.1:4566", admin)).unwrap();
        let config = load(&home).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.admin.listen, admin);
        let auth = |id: &str| &config.destinations.iter().find(|(found, _)| found.as_str() == id).unwrap().1.auth;
        assert!(
            matches!(auth(ACME), Auth::IamRole { external_id: Some(id), .. } if id.expose() == secrets.external_id)
        );
        assert!(matches!(auth(GLOBEX), Auth::AccessKey { access_key_id, .. } if *access_key_id == secrets.globex.id));
    }
}
