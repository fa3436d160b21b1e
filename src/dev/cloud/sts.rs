//! STS: AssumeRole with its external id, and GetCallerIdentity.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use jiff::Timestamp;
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::keys::{Keys, SigningPrincipal, TemporaryKey};
use super::policy::Policy;
use super::{Customer, PLATFORM_ACCOUNT, Way, escape};
use crate::domain::policy::SESSION_POLICY_LIMIT;

/// A form larger than this is no call of ours.
const FORM_LIMIT: usize = 64 << 10;
/// The shortest and the longest session STS gives
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>); this cloud's roles
/// allow an hour, as roles do by default.
const DURATION: std::ops::RangeInclusive<u64> = 900..=3600;

/// The route of STS: a form posted to `/`.
pub(super) struct Sts {
    pub(super) keys: Arc<Keys>,
    pub(super) customers: Vec<Arc<Customer>>,
}

/// An answer in the making: the body of the result, or status, code and message of the refusal.
type StsResponse = Result<String, StsError>;
struct StsError(StatusCode, &'static str, String);

/// True for what only STS is asked.
pub(super) fn is_sts(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let form = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let form = form.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
    method == Method::POST && uri.path() == "/" && form
}

/// The parameters of a call.
struct FormFields(Vec<(String, String)>);

impl FormFields {
    fn parse(body: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(body).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl Sts {
    fn assume(&self, form: &FormFields) -> StsResponse {
        let asked = form.get("RoleArn").unwrap_or_default();
        let role = self.customers.iter().find_map(|customer| match &customer.way {
            Way::Role { arn, external_id } if arn == asked => Some((customer, external_id)),
            _ => None,
        });
        let refused = || denied(&format!("not authorized to perform: sts:AssumeRole on resource: {asked}"));
        let (customer, external_id) = role.ok_or_else(refused)?;
        if form.get("ExternalId") != Some(external_id) {
            return Err(refused());
        }
        let name = form.get("RoleSessionName").unwrap_or_default();
        if !(2..=64).contains(&name.len()) {
            return Err(invalid("RoleSessionName must have 2 to 64 characters".to_owned()));
        }
        let seconds = form.get("DurationSeconds").map_or(Ok(3600), str::parse).ok().filter(|s| DURATION.contains(s));
        let seconds = seconds.ok_or_else(|| invalid("DurationSeconds must be 900 to 3600".to_owned()))?;
        let policy = form.get("Policy").map(session_policy).transpose()?;
        let issued = self.keys.issue(customer.clone(), policy, Duration::from_secs(seconds));
        Ok(assumed(asked, name, &issued))
    }
}

fn session_policy(document: &str) -> Result<Policy, StsError> {
    if document.len() > SESSION_POLICY_LIMIT {
        return Err(invalid(format!("Policy must have at most {SESSION_POLICY_LIMIT} characters")));
    }
    Policy::parse(document).map_err(|why| StsError(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", why))
}

fn assumed(role: &str, session: &str, issued: &TemporaryKey) -> String {
    let ends = Timestamp::try_from(issued.ends).unwrap_or_default();
    let user = format!("{}/{session}", role.replacen(":iam:", ":sts:", 1).replacen(":role/", ":assumed-role/", 1));
    format!(
        "<AssumedRoleUser><Arn>{}</Arn><AssumedRoleId>AROADEV:{}</AssumedRoleId></AssumedRoleUser><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{ends:.0}</Expiration></Credentials>",
        escape(&user),
        escape(session),
        issued.pair.id,
        issued.pair.secret,
        issued.token
    )
}

fn caller(principal: &SigningPrincipal, key: &str) -> String {
    let (account, name) = match principal {
        SigningPrincipal::Platform => (PLATFORM_ACCOUNT, "user/platform"),
        SigningPrincipal::Viewer => (PLATFORM_ACCOUNT, "user/onlooker"),
        SigningPrincipal::Customer(customer, _) => (customer.account.as_str(), "user/customer"),
    };
    format!("<Arn>arn:aws:iam::{account}:{name}</Arn><UserId>{key}</UserId><Account>{account}</Account>")
}

fn denied(message: &str) -> StsError {
    StsError(StatusCode::FORBIDDEN, "AccessDenied", message.to_owned())
}

fn invalid(message: String) -> StsError {
    StsError(StatusCode::BAD_REQUEST, "ValidationError", message)
}

/// An error in the shape of STS, which is not that of S3.
pub(super) fn refusal(code: &str, message: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{}</Code>\
         <Message>{}</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
        escape(code),
        escape(message),
        uuid::Uuid::new_v4()
    )
}

fn xml(status: StatusCode, body: &str) -> S3Response<Body> {
    let mut response = S3Response::with_status(Body::from(body.to_owned()), status);
    response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    response
}

#[async_trait]
impl S3Route for Sts {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        is_sts(method, uri, headers)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let signer = request.credentials.as_ref().and_then(|credentials| self.keys.signer(&credentials.access_key));
        match signer {
            Some(_) if request.service.as_deref() != Some("sts") => {
                Err(s3_error!(SignatureDoesNotMatch, "Credential should be scoped to correct service: 'sts'."))
            }
            Some(signer) => super::grants::carries(signer.token.as_deref(), &request.headers),
            None => Err(s3_error!(AccessDenied, "Request is missing Authentication Token")),
        }
    }

    async fn call(&self, mut request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let body = request.input.store_all_limited(FORM_LIMIT).await;
        let form = FormFields::parse(&body.map_err(|_| s3_error!(InvalidRequest, "the form can't be read"))?);
        let key = request.credentials.map(|credentials| credentials.access_key).unwrap_or_default();
        let action = form.get("Action").unwrap_or_default();
        let answer = match (action, self.keys.signer(&key).map(|signer| signer.principal)) {
            ("AssumeRole", Some(SigningPrincipal::Platform)) => self.assume(&form),
            ("AssumeRole", _) => Err(denied("this principal may not assume roles")),
            ("GetCallerIdentity", Some(principal)) => Ok(caller(&principal, &key)),
            _ => Err(invalid(format!("there is no action {action} here"))),
        };
        Ok(match answer {
            Ok(result) => xml(
                StatusCode::OK,
                &format!(
                    "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>{result}</{action}Result>\
                 <ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></{action}Response>",
                    uuid::Uuid::new_v4()
                ),
            ),
            Err(StsError(status, code, message)) => xml(status, &refusal(code, &message)),
        })
    }
}
