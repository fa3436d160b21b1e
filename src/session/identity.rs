//! Identity of the worker: the standard AWS chain, and the role that customers trust, if
//! configured.

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::{CONNECT_TIMEOUT, endpoint, s3_config};
use crate::config::AwsConfig;
use crate::domain::destination::Region;

/// Identity of the worker, and the HTTP client that all AWS clients share.
#[derive(Debug, Clone)]
pub struct WorkerIdentity {
    sdk: SdkConfig,
    http: SharedHttpClient,
}

impl WorkerIdentity {
    /// Finds the source of the identity. Nothing is called before the first AssumeRole, which
    /// reports a missing identity.
    pub async fn load(aws: &AwsConfig) -> Self {
        let http = https();
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone()).timeout_config(timeouts());
        loader = match &aws.region {
            Some(region) => loader.region(aws_config::Region::new(region.as_str().to_owned())),
            // Not the instance's metadata: away from EC2 they take seconds not to answer, and STS is called in the
            // destination's region where none is named.
            None => loader.region(
                RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                    .or_else(ProfileFileRegionProvider::new()),
            ),
        };
        let mut sdk = loader.load().await;
        if let Some(role) = &aws.identity_role_arn {
            let mut sts = sdk.clone().into_builder();
            sts.set_endpoint_url(aws.sts_endpoint_url.as_ref().map(endpoint));
            let provider = AssumeRoleProvider::builder(role.as_str())
                .session_name("consign")
                .configure(&sts.build())
                .build()
                .await;
            sdk = sdk.into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build();
        }
        Self { sdk, http }
    }

    /// Identity of a known key in a known region. Environment, profile files and metadata services
    /// are not read.
    pub fn fixed(access_key_id: &str, secret_access_key: &str, region: &Region) -> Self {
        let http = https();
        let key = Credentials::new(access_key_id, secret_access_key, None, None, "consign fixed identity");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http.clone())
            .timeout_config(timeouts())
            .region(aws_config::Region::new(region.as_str().to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(key))
            .build();
        Self { sdk, http }
    }

    /// The configuration clients with the worker's own credentials are made from.
    pub(super) fn sdk(&self) -> &SdkConfig {
        &self.sdk
    }

    /// The shared HTTP client.
    pub(super) fn http_client(&self) -> SharedHttpClient {
        self.http.clone()
    }

    /// Returns an S3 client with the worker's own credentials, for the staging buckets of the
    /// platform.
    ///
    /// Its region is that of the worker: `aws.region`, else that of the environment, else
    /// `us-east-1`.
    pub fn staging_client(&self, aws: &AwsConfig) -> aws_sdk_s3::Client {
        let named = self.sdk.region().and_then(|region| Region::parse(region.as_ref()).ok());
        let region = aws.region.clone().or(named).or_else(|| Region::parse("us-east-1").ok());
        let mut config = match &region {
            Some(region) => s3_config(aws, self.http_client(), region),
            None => aws_sdk_s3::Config::builder(),
        };
        config.set_credentials_provider(self.sdk.credentials_provider());
        if let Some(cache) = self.sdk.identity_cache() {
            config.set_identity_cache(cache);
        }
        aws_sdk_s3::Client::from_conf(config.build())
    }
}

/// Returns the HTTP client. It connects directly and ignores proxies of the environment.
fn https() -> SharedHttpClient {
    Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc)).build_https()
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build()
}
