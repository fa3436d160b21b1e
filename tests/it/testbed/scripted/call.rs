//! One call as it came over the wire, and its answer.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::Full;
use jiff::Timestamp;

/// Header of the CRC-64/NVME, of requests and answers.
pub const CRC: &str = "x-amz-checksum-crc64nvme";

/// A recorded call.
#[derive(Debug, Clone)]
pub struct Call {
    /// The API's name, or `Unknown`.
    pub operation: &'static str,
    pub bucket: String,
    pub key: String,
    /// The access key id of the signature; empty when unsigned.
    pub access_key_id: String,
    /// The region that the signature was made for.
    pub region: String,
    pub headers: BTreeMap<String, String>,
    /// The query of S3, or the form of STS.
    pub query: BTreeMap<String, String>,
    pub body: Bytes,
    /// Time at which it was complete.
    pub arrived: Timestamp,
    /// True if a rule hit it.
    pub bent: bool,
    /// The status of the answer; 0 while there is none, and when it was lost.
    pub status: u16,
    /// The CRC-64/NVME in the headers of the answer.
    pub answered_crc: Option<String>,
}

impl Call {
    pub fn read(head: &Parts, body: Bytes) -> Self {
        let path = url::form_urlencoded::parse(format!("p={}", head.uri.path().replace('+', "%2B")).as_bytes())
            .next()
            .map_or_else(String::new, |(_, path)| path.into_owned());
        let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
        let headers: BTreeMap<_, _> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let form = bucket.is_empty() && head.method == http::Method::POST;
        let query = if form { body.to_vec() } else { head.uri.query().unwrap_or_default().as_bytes().to_vec() };
        let query: BTreeMap<_, _> = url::form_urlencoded::parse(&query).into_owned().collect();
        let scope =
            headers.get("authorization").and_then(|value| value.split("Credential=").nth(1)).unwrap_or_default();
        let mut scope = scope.split(',').next().unwrap_or_default().split('/');
        let access_key_id = scope.next().unwrap_or_default().to_owned();
        let region = scope.nth(1).unwrap_or_default().to_owned();
        let operation = match operation(head.method.as_str(), key, &query, form) {
            "ListObjectsV2" if bucket.is_empty() => "ListBuckets",
            operation => operation,
        };
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let arrived = Timestamp::now();
        let (bent, status, answered_crc) = (false, 0, None);
        Self {
            operation,
            bucket,
            key,
            access_key_id,
            region,
            headers,
            query,
            body,
            arrived,
            bent,
            status,
            answered_crc,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// True if S3 compared the body with a header, or answered what the body's checksum is.
    pub fn proves_its_body(&self) -> bool {
        self.header(CRC).or(self.answered_crc.as_deref()).is_some_and(|crc| crc == super::store::crc(&self.body))
    }

    pub fn asked(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// Time of the signature.
    pub fn signed(&self) -> Option<Timestamp> {
        self.header("x-amz-date")?.parse().ok()
    }

    /// True when the call asks for any encryption.
    pub fn asks_encryption(&self) -> bool {
        self.headers.keys().any(|name| name.starts_with("x-amz-server-side-encryption"))
    }

    /// A call that confirms an outage: it is made in nobody's name.
    pub fn is_about_an_outage(&self) -> bool {
        self.access_key_id.is_empty() && ["HeadBucket", "ListBuckets"].contains(&self.operation)
    }

    /// Violations in the call itself, independent of the store.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut note = |wrong: bool, what: &str| {
            if wrong {
                found.push(format!("{} {}: {what}", self.operation, self.key));
            }
        };
        let sha = self.header("x-amz-content-sha256").unwrap_or_default();
        let bytes = matches!(self.operation, "PutObject" | "UploadPart");
        note(self.operation == "Unknown", "unknown operation");
        note(self.access_key_id.is_empty() && !self.is_about_an_outage(), "unsigned");
        note(bytes && sha != "UNSIGNED-PAYLOAD", &format!("the payload is signed: {sha}"));
        note(self.header("x-amz-trailer").is_some(), "a trailer");
        note(self.header("content-encoding").is_some_and(|e| e.contains("aws-chunked")), "aws-chunked");
        note(self.headers.keys().any(|name| name == "x-amz-acl" || name.starts_with("x-amz-grant")), "an ACL header");
        found
    }
}

fn operation(method: &str, key: &str, query: &BTreeMap<String, String>, form: bool) -> &'static str {
    let has = |name: &str| query.contains_key(name);
    match method {
        "POST" if form && query.get("Action").is_some_and(|action| action == "AssumeRole") => "AssumeRole",
        "POST" if form && query.get("Action").is_some_and(|action| action == "GetCallerIdentity") => {
            "GetCallerIdentity"
        }
        "POST" if has("uploads") => "CreateMultipartUpload",
        "POST" if has("uploadId") => "CompleteMultipartUpload",
        "PUT" if has("partNumber") => "UploadPart",
        "PUT" if !key.is_empty() => "PutObject",
        "DELETE" if has("uploadId") => "AbortMultipartUpload",
        "DELETE" if !key.is_empty() => "DeleteObject",
        "GET" if has("location") => "GetBucketLocation",
        "GET" if key.is_empty() && !form => "ListObjectsV2",
        "GET" => "GetObject",
        "HEAD" if key.is_empty() => "HeadBucket",
        "HEAD" => "HeadObject",
        _ => "Unknown",
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Reply {
    pub fn ok() -> Self {
        Self {
            status: 200,
            headers: vec![("x-amz-request-id".to_owned(), "SCRIPTED0000001".to_owned())],
            body: Bytes::new(),
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn xml(mut self, body: &str) -> Self {
        self.headers.push(("content-type".to_owned(), "application/xml".to_owned()));
        self.body = Bytes::from(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}"));
        self
    }

    /// An error as S3 or STS words it.
    pub fn error(call: &Call, status: u16, code: &str, message: &str) -> Self {
        let message = escape(message);
        let body = if call.operation == "AssumeRole" || call.operation == "GetCallerIdentity" {
            format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>{message}</Message></Error><RequestId>SCRIPTED0000002</RequestId></ErrorResponse>"
            )
        } else {
            format!(
                "<Error><Code>{code}</Code><Message>{message}</Message><RequestId>SCRIPTED0000002</RequestId>\
                 <HostId>scripted</HostId></Error>"
            )
        };
        Self { status, ..Self::ok() }.xml(&body)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn no_checksum(&mut self) {
        self.headers.retain(|(name, _)| !name.starts_with("x-amz-checksum-"));
        let text = String::from_utf8_lossy(&self.body).into_owned();
        if let (Some(start), Some(end)) = (text.find("<ChecksumCRC64NVME>"), text.find("</ChecksumType>")) {
            self.body = Bytes::from(format!("{}{}", &text[..start], &text[end + "</ChecksumType>".len()..]));
        }
    }

    pub fn wrong_checksum(&mut self) {
        const WRONG: &str = "AAAAAAAAAAA=";
        for (name, value) in &mut self.headers {
            if name == CRC {
                WRONG.clone_into(value);
            }
        }
        let text = String::from_utf8_lossy(&self.body).into_owned();
        if let (Some(start), Some(end)) = (text.find("<ChecksumCRC64NVME>"), text.find("</ChecksumCRC64NVME>")) {
            let start = start + "<ChecksumCRC64NVME>".len();
            self.body = Bytes::from(format!("{}{WRONG}{}", &text[..start], &text[end..]));
        }
    }

    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut builder = Response::builder().status(self.status);
        for (name, value) in self.headers {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(self.body)).unwrap()
    }
}

/// Text as XML holds it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
