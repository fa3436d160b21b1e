//! An STS in front of a store's own that gives sessions of seconds and says that they last an hour.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use axum::Router;
use axum::extract::State;
use axum::routing::post;

use super::ground::Store;

/// The STS. Ends with the test's runtime.
pub struct BriefSts {
    pub url: String,
    assumed: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Behind {
    sts: aws_sdk_sts::Client,
    life: Duration,
    assumed: Arc<AtomicUsize>,
}

impl BriefSts {
    pub async fn before(store: &Store, life: Duration) -> Self {
        let key = store.identity.as_ref().unwrap();
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(store.region))
            .endpoint_url(store.sts_url.as_ref().unwrap())
            .credentials_provider(Credentials::new(&key.id, &key.secret, None, None, "tests"));
        let assumed = Arc::<AtomicUsize>::default();
        let behind = Behind { sts: aws_sdk_sts::Client::from_conf(config.build()), life, assumed: assumed.clone() };
        let (listener, address) = crate::testbed::listener().await;
        let router = Router::new().route("/", post(answer)).with_state(behind);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url: format!("http://{address}"), assumed }
    }

    /// Number of sessions so far.
    pub fn assumed(&self) -> usize {
        self.assumed.load(Ordering::SeqCst)
    }
}

async fn answer(State(behind): State<Behind>, body: String) -> String {
    let field = |name: &str| {
        let mut pairs = url::form_urlencoded::parse(body.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let request = behind
        .sts
        .assume_role()
        .set_role_arn(field("RoleArn"))
        .set_role_session_name(field("RoleSessionName"))
        .set_external_id(field("ExternalId"))
        .set_policy(field("Policy"))
        .duration_seconds(i32::try_from(behind.life.as_secs()).unwrap());
    let given = request.send().await.unwrap().credentials.unwrap();
    behind.assumed.fetch_add(1, Ordering::SeqCst);
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{later:.0}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>",
        given.access_key_id, given.secret_access_key, given.session_token
    )
}
