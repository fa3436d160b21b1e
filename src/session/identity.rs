//! Identity of the worker: the standard AWS chain, and the role that customers trust, if
//! configured.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig};
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use crate::config::AwsConfig;
use crate::domain::destination::{Region, home_region_of};

/// Time-out for making a TCP and TLS connection to S3 or STS. One value for all clients: different
/// ones would split the connection pool.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Identity of the worker, and the HTTP client that all AWS clients share.
#[derive(Debug, Clone)]
pub struct WorkerIdentity {
    /// The configuration clients with the worker's own credentials are made from.
    pub(super) sdk: SdkConfig,
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
        if let Some(fips) = aws.use_fips_endpoint {
            loader = loader.use_fips(fips);
        }
        if let Some(dual_stack) = aws.use_dualstack_endpoint {
            loader = loader.use_dual_stack(dual_stack);
        }
        let mut sdk = loader.load().await;
        if let Some(role) = &aws.identity_role_arn {
            let mut sts = sdk.clone().into_builder();
            if sdk.region().is_none() {
                sts.set_region(Some(aws_config::Region::new(home_region_of(role.partition()))));
            }
            if let Some(url) = &aws.sts_endpoint_url {
                sts.set_endpoint_url(Some(endpoint(url))).set_use_fips(Some(false)).set_use_dual_stack(Some(false));
            }
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

    /// Returns the settings that all S3 clients of this program share, without credentials.
    pub(super) fn s3_config(&self, aws: &AwsConfig, region: &Region) -> aws_sdk_s3::config::Builder {
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(aws_sdk_s3::config::Region::new(region.as_str().to_owned()))
            .http_client(self.http.clone())
            .retry_config(RetryConfig::disabled())
            // One for all: the SDK keeps one for each region that a job names, for ever.
            .retry_partition(RetryPartition::new("consign-s3"))
            .timeout_config(timeouts())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .disable_s3_express_session_auth(true)
            .force_path_style(aws.force_path_style);
        match &aws.s3_endpoint_url {
            Some(url) => config.set_endpoint_url(Some(endpoint(url))),
            // As STS has them: from the configuration, the environment or the profile.
            None => config.set_use_fips(self.sdk.use_fips()).set_use_dual_stack(self.sdk.use_dual_stack()),
        };
        config
    }

    /// Returns an S3 client with the worker's own credentials, for the staging buckets of the
    /// platform.
    ///
    /// Its region is that of the worker: `aws.region`, else that of the environment, else the home
    /// of the identity's partition, else `us-east-1`.
    pub fn staging_client(&self, aws: &AwsConfig) -> aws_sdk_s3::Client {
        let named = self.sdk.region().and_then(|region| Region::parse(region.as_ref()).ok());
        let partition = aws.identity_role_arn.as_ref().map_or("aws", |role| role.partition());
        let region = aws.region.clone().or(named).or_else(|| Region::parse(home_region_of(partition)).ok());
        let mut config = match &region {
            Some(region) => self.s3_config(aws, region),
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

/// The URL without the slash that `url` adds: the SDK appends paths to it.
pub(super) fn endpoint(url: &url::Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build()
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::presigning::PresigningConfig;

    use super::*;
    use crate::domain::destination::RoleArn;
    use crate::session::assume::sts_region;

    fn region(name: &str) -> Region {
        Region::parse(name).unwrap()
    }

    fn sdk(fips: bool, dual_stack: bool) -> SdkConfig {
        SdkConfig::builder().use_fips(fips).use_dual_stack(dual_stack).build()
    }

    /// The host that a PutObject goes to.
    async fn host(aws: &AwsConfig, sdk: SdkConfig) -> String {
        host_of("acme", "us-gov-west-1", aws, sdk).await
    }

    /// As [`host`], for any bucket in any region.
    async fn host_of(bucket: &str, name: &str, aws: &AwsConfig, sdk: SdkConfig) -> String {
        let key = Credentials::new("AKIA", "secret", None, None, "test");
        let identity = WorkerIdentity { sdk, http: https() };
        let config = identity.s3_config(aws, &region(name)).credentials_provider(key).build();
        let put = aws_sdk_s3::Client::from_conf(config).put_object().bucket(bucket).key("k");
        let request = put.presigned(PresigningConfig::expires_in(Duration::from_mins(1)).unwrap()).await.unwrap();
        url::Url::parse(request.uri()).unwrap().host_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn fips_and_dual_stack_hold_for_s3_unless_an_endpoint_is_set() {
        let none = AwsConfig::default();
        assert_eq!(host(&none, sdk(false, false)).await, "acme.s3.us-gov-west-1.amazonaws.com");
        assert_eq!(host(&none, sdk(true, false)).await, "acme.s3-fips.us-gov-west-1.amazonaws.com");
        assert_eq!(host(&none, sdk(false, true)).await, "acme.s3.dualstack.us-gov-west-1.amazonaws.com");
        assert_eq!(host(&none, sdk(true, true)).await, "acme.s3-fips.dualstack.us-gov-west-1.amazonaws.com");
        let store =
            AwsConfig { s3_endpoint_url: url::Url::parse("https://store.example").ok(), ..AwsConfig::default() };
        assert_eq!(host(&store, sdk(true, true)).await, "acme.store.example");
    }

    #[tokio::test]
    async fn fips_and_dual_stack_of_the_configuration_are_those_of_all_clients() {
        for (fips, dual_stack) in [(true, true), (true, false), (false, true)] {
            let aws = AwsConfig {
                region: Some(region("us-gov-west-1")),
                use_fips_endpoint: Some(fips),
                use_dualstack_endpoint: Some(dual_stack),
                ..AwsConfig::default()
            };
            let identity = WorkerIdentity::load(&aws).await;
            assert_eq!((identity.sdk.use_fips(), identity.sdk.use_dual_stack()), (Some(fips), Some(dual_stack)));
        }
    }

    #[tokio::test]
    async fn an_access_point_is_written_to_at_a_host_of_its_own() {
        let point = "arn:aws:s3:eu-central-1:123456789012:accesspoint/exports";
        for (fips, dual_stack, service) in [
            (false, false, "s3-accesspoint"),
            (true, false, "s3-accesspoint-fips"),
            (false, true, "s3-accesspoint.dualstack"),
        ] {
            let host = host_of(point, "eu-central-1", &AwsConfig::default(), sdk(fips, dual_stack)).await;
            assert_eq!(host, format!("exports-123456789012.{service}.eu-central-1.amazonaws.com"));
        }
    }

    #[test]
    fn sts_is_asked_where_the_identity_is_at_home_before_the_destinations_region() {
        let bare = WorkerIdentity { sdk: SdkConfig::builder().build(), http: https() };
        let eu = aws_config::Region::new("eu-west-1");
        let environment = WorkerIdentity { sdk: SdkConfig::builder().region(eu).build(), http: https() };
        let role = |partition| RoleArn::parse(&format!("arn:{partition}:iam::999999999999:role/consign")).ok();
        let with_role = |partition| AwsConfig { identity_role_arn: role(partition), ..AwsConfig::default() };
        let configured = AwsConfig { region: Some(region("eu-north-1")), ..with_role("aws") };
        let theirs = Some(region("ap-south-1"));
        for (aws, identity, expected) in [
            (configured, &environment, "eu-north-1"),
            (with_role("aws"), &environment, "eu-west-1"),
            (AwsConfig::default(), &environment, "eu-west-1"),
            (with_role("aws"), &bare, "us-east-1"),
            (with_role("aws-us-gov"), &bare, "us-gov-west-1"),
            (with_role("aws-cn"), &bare, "cn-north-1"),
            (AwsConfig::default(), &bare, "ap-south-1"),
        ] {
            assert_eq!(sts_region(&aws, theirs.as_ref(), identity), expected);
        }
        assert_eq!(sts_region(&AwsConfig::default(), None, &bare), "us-east-1");
    }
}
