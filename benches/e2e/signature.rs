//! Headers of a PutObject request: a CRC-64/NVME checksum, and a signature with `UNSIGNED-PAYLOAD`.

use std::net::SocketAddr;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use http::{HeaderValue, Request};

use crate::Fallible;

const CHECKSUM: &str = "x-amz-checksum-crc64nvme";
const PAYLOAD: &str = "x-amz-content-sha256";

/// Adds checksum and signature of a small file to its request.
pub fn add<B>(request: &mut Request<B>, address: SocketAddr, bytes: &[u8]) -> Fallible<()> {
    let checksum = BASE64_STANDARD.encode(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes).to_be_bytes());
    request.headers_mut().insert(CHECKSUM, HeaderValue::try_from(checksum)?);
    request.headers_mut().insert(PAYLOAD, HeaderValue::from_static("UNSIGNED-PAYLOAD"));
    let token = Some("session".to_owned());
    let identity = Credentials::new("AKIABENCHBENCHBENCHB", "bench", token, None, "raw").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name("s3")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()?;
    let (method, uri) = (request.method().as_str(), format!("http://{address}{}", request.uri()));
    let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let signable = SignableRequest::new(method, uri, headers, SignableBody::UnsignedPayload)?;
    let (instructions, _) = sign(signable, &params.into())?.into_parts();
    instructions.apply_to_request_http1x(request);
    Ok(())
}
