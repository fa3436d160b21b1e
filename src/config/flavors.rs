//! Flavors: presets of settings for stores that speak the protocol of S3, in one table.
//!
//! The reasons, and what each store supports, are in deploy/docs/stores.md; a test compares the
//! two.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::text_enum::text_enum;

/// A dotted key and its value. `*` in a key stands for the id of each configured destination.
pub type Preset = (&'static str, &'static str);

/// `https://endpoint/bucket/key`: needs no DNS name for each bucket.
const PATH_STYLE: Preset = ("aws.force_path_style", "true");
/// Their STS refuses a session policy with actions of KMS.
const POLICY_WITHOUT_KMS: Preset = ("session.policy", "s3");
/// They have no AssumeRole, so that their destinations need access keys. Without roles, no job
/// brings a destination, and the presets of destinations reach all there are.
const NO_ROLES: Preset = ("session.role_auth", "false");
/// They do not know CRC-64/NVME.
const NO_CHECKSUM: Preset = ("destinations.*.checksum", "none");
/// They refuse an upload in parts of several lengths.
const EQUAL_PARTS: Preset = ("destinations.*.equal_parts", "true");

// In the order of the documentation.
text_enum! {
    /// `aws.flavor`: a store whose usual settings are preset.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Flavor {
        /// AWS S3. Presets nothing.
        Aws = "aws",
        /// Ceph Object Gateway (RGW).
        Ceph = "ceph",
        /// MinIO.
        Minio = "minio",
        /// Garage.
        Garage = "garage",
        /// SeaweedFS.
        Seaweedfs = "seaweedfs",
        /// Cloudflare R2.
        R2 = "r2",
        /// Wasabi.
        Wasabi = "wasabi",
        /// Google Cloud Storage, by its XML API.
        Gcs = "gcs",
        /// Oracle Cloud Infrastructure Object Storage.
        Oci = "oci",
        /// Scaleway Object Storage.
        Scaleway = "scaleway",
    }
}

impl Flavor {
    /// Returns the settings that are preset, each below every explicit one.
    pub fn presets(self) -> &'static [Preset] {
        match self {
            Self::Aws | Self::Wasabi => &[],
            Self::Ceph | Self::Minio => &[PATH_STYLE, POLICY_WITHOUT_KMS],
            Self::Garage => &[PATH_STYLE, NO_ROLES],
            Self::Seaweedfs => &[PATH_STYLE],
            Self::R2 => &[NO_ROLES, EQUAL_PARTS],
            Self::Gcs => &[NO_ROLES, NO_CHECKSUM],
            Self::Oci => &[PATH_STYLE, NO_ROLES, NO_CHECKSUM],
            Self::Scaleway => &[NO_ROLES],
        }
    }

    /// Returns true if the store answers AccessDenied, and not ExpiredToken, to a session that has
    /// expired.
    pub fn denies_expired_sessions(self) -> bool {
        self == Self::Ceph
    }

    /// Returns the largest number of parts of an object, where it is not that of S3
    /// (<https://www.scaleway.com/en/docs/object-storage/api-cli/multipart-uploads/>).
    pub fn max_parts(self) -> Option<u32> {
        (self == Self::Scaleway).then_some(1000)
    }

    /// Returns true if the store ignores If-None-Match in this operation of the API, and replaces
    /// what is there.
    pub fn ignores_if_none_match(self, operation: &str) -> bool {
        match self {
            Self::Ceph => operation == "CompleteMultipartUpload",
            // Preconditions of a write have another header in GCS; Garage 2.5 has none.
            Self::Gcs | Self::Garage => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{ValueOrigin, load_str};
    use crate::domain::destination::{Checksum, SessionPolicyMode};

    const KEYS: &str = r#"
        [destinations.acme]
        bucket = "acme-exports"
        region = "auto"
        auth = { method = "access_key", access_key_id = "GK31", secret_access_key = "secret" }
    "#;

    fn flavored(flavor: &str) -> String {
        format!("[aws]\nflavor = \"{flavor}\"\ns3_endpoint_url = \"https://s3.example.com\"\n{KEYS}")
    }

    #[test]
    fn words_are_those_of_the_configuration() {
        for flavor in Flavor::ALL {
            assert_eq!(json!(flavor), json!(flavor.as_str()));
            assert_eq!(serde_json::from_value::<Flavor>(flavor.as_str().into()).ok(), Some(flavor));
        }
    }

    #[test]
    fn every_preset_is_a_setting_with_a_value_that_fits() {
        for flavor in Flavor::ALL {
            let loaded = load_str(&flavored(flavor.as_str())).unwrap();
            let shown = loaded.settings();
            for (key, value) in flavor.presets() {
                let key = key.replace('*', "acme");
                let found = shown.iter().find(|setting| setting.key == key).unwrap();
                assert_eq!(found.value.as_str().map_or(found.value.to_string(), str::to_owned), *value, "{key}");
                assert_eq!(found.origin, ValueOrigin::Flavor { flavor });
                assert_eq!(found.origin.to_string(), format!("flavor {}", flavor.as_str()));
                assert!(loaded.is_given(&key));
            }
            let preset = shown.iter().filter(|setting| matches!(setting.origin, ValueOrigin::Flavor { .. }));
            assert_eq!(preset.count(), flavor.presets().len());
        }
    }

    #[test]
    fn presets_reach_the_program() {
        let config = |flavor: &str| load_str(&flavored(flavor)).unwrap().config;
        let ceph = config("ceph");
        assert!(ceph.aws.force_path_style && ceph.session.role_auth);
        assert_eq!(ceph.session.policy, SessionPolicyMode::S3);
        let destination = |flavor: &str| config(flavor).destinations.values().next().unwrap().clone();
        assert_eq!(destination("gcs").checksum, Checksum::None);
        assert!(destination("r2").equal_parts && destination("r2").checksum == Checksum::Crc64Nvme);
        assert!(!config("r2").session.role_auth);
    }

    #[test]
    fn an_explicit_setting_wins_even_if_it_is_the_default() {
        let text = flavored("oci").replace("[aws]", "session.role_auth = true\n[aws]\nforce_path_style = false");
        let loaded = load_str(&format!("{text}\nchecksum = \"crc64nvme\"\n")).unwrap();
        assert!(!loaded.config.aws.force_path_style && loaded.config.session.role_auth);
        assert_eq!(loaded.config.destinations.values().next().unwrap().checksum, Checksum::Crc64Nvme);
        assert!(!loaded.settings().iter().any(|setting| matches!(setting.origin, ValueOrigin::Flavor { .. })));
    }

    #[test]
    fn presets_of_destinations_need_no_word_from_jobs() {
        for flavor in Flavor::ALL {
            let of_destinations = flavor.presets().iter().any(|(key, _)| key.starts_with("destinations."));
            assert!(
                !of_destinations || flavor.presets().contains(&NO_ROLES),
                "{flavor:?}: jobs may bring destinations"
            );
        }
    }

    #[test]
    fn a_store_without_an_endpoint_would_be_aws() {
        let text = |flavor: &str| format!("[aws]\nflavor = \"{flavor}\"\n{KEYS}");
        for flavor in Flavor::ALL {
            let loaded = load_str(&text(flavor.as_str())).map_err(|problems| problems.to_string());
            match loaded {
                Ok(_) => assert_eq!(flavor, Flavor::Aws),
                Err(problems) => assert!(problems.contains("set aws.s3_endpoint_url"), "{problems}"),
            }
        }
    }

    #[test]
    fn another_word_names_those_that_are_known() {
        let problems = load_str(&flavored("cephalopod")).unwrap_err().to_string();
        assert!(problems.contains("aws.flavor") && !problems.contains("cephalopod"), "{problems}");
        for flavor in Flavor::ALL {
            assert!(problems.contains(&format!("\"{}\"", flavor.as_str())), "{problems}");
        }
    }
}
