//! The operations: what S3 and STS answer when nobody interferes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use jiff::{SignedDuration, Timestamp};

use super::call::{CRC, Call, Reply, escape};
use super::store::{Object, Part, Session, Store, Upload, crc, tag, whole_second};
use crate::testbed::MIB;

/// Session that AssumeRole grants.
const SESSION: Duration = Duration::from_secs(3600);
const SKEW: SignedDuration = SignedDuration::from_mins(15);

type Answer = Result<Reply, Reply>;

impl Store {
    pub fn perform(&mut self, call: &Call) -> Reply {
        let answer = match call.operation {
            "AssumeRole" | "GetCallerIdentity" if is_skewed(call) => {
                let message = "Signature expired: it is not of now";
                Err(Reply::error(call, 403, "SignatureDoesNotMatch", message))
            }
            "ListBuckets" => Err(Reply::error(call, 403, "AccessDenied", "Access Denied")),
            "AssumeRole" => Ok(self.assume_role(call)),
            "GetCallerIdentity" => Ok(caller(call)),
            _ if is_skewed(call) => {
                let message = "The difference between the request time and the current time is too large.";
                Err(Reply::error(call, 403, "RequestTimeTooSkewed", message))
            }
            _ => self.admit(call).and_then(|()| self.s3(call)),
        };
        answer.unwrap_or_else(|refusal| refusal)
    }

    fn s3(&mut self, call: &Call) -> Answer {
        match call.operation {
            "PutObject" => self.put_object(call),
            "CreateMultipartUpload" => Ok(self.create(call)),
            "UploadPart" => self.upload_part(call),
            "CompleteMultipartUpload" => self.complete(call),
            "AbortMultipartUpload" => self.abort(call),
            "ListObjectsV2" => Ok(self.list(call)),
            "GetObject" | "HeadObject" => self.get(call),
            "GetBucketLocation" => Ok(self.location(call)),
            "HeadBucket" => Ok(Reply::ok()),
            "DeleteObject" => Ok(self.delete(call)),
            _ => Err(Reply::error(call, 405, "MethodNotAllowed", "The specified method is not allowed.")),
        }
    }

    fn assume_role(&mut self, call: &Call) -> Reply {
        if self.trust.as_ref().is_some_and(|id| call.asked("ExternalId") != id) {
            let message = "User: arn:aws:iam::999999999999:user/platform is not authorized to perform: sts:AssumeRole on resource";
            return Reply::error(call, 403, "AccessDenied", message);
        }
        let id = format!("ASIASCRIPTED{:08}", self.draw());
        let role = call.asked("RoleArn").to_owned();
        let account = role.split(':').nth(4).unwrap_or_default().to_owned();
        let caller = call.access_key_id.clone();
        self.sessions.insert(id.clone(), Session { role, account, caller, ends: Instant::now() + SESSION });
        let ends = Timestamp::now() + SESSION;
        let role = escape(call.asked("RoleArn"));
        let name = escape(call.asked("RoleSessionName"));
        Reply::ok().xml(&format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
             <AssumedRoleUser><Arn>{role}/{name}</Arn><AssumedRoleId>AROASCRIPTED:{name}</AssumedRoleId></AssumedRoleUser>\
             <Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>marked-secret-session-key</SecretAccessKey>\
             <SessionToken>marked-secret-session-token-{id}</SessionToken><Expiration>{ends:.0}</Expiration></Credentials>\
             </AssumeRoleResult><ResponseMetadata><RequestId>SCRIPTED0000001</RequestId></ResponseMetadata></AssumeRoleResponse>"
        ))
    }

    /// Session, bucket, region and owner, in the order of S3.
    fn admit(&mut self, call: &Call) -> Result<(), Reply> {
        let session = self.sessions.get(&call.access_key_id);
        match session {
            None if call.access_key_id.starts_with("ASIA") => {
                return Err(Reply::error(call, 403, "InvalidAccessKeyId", "The key id does not exist in our records."));
            }
            Some(session) if session.ends <= Instant::now() => {
                return Err(Reply::error(call, 400, "ExpiredToken", "The provided token has expired."));
            }
            _ => {}
        }
        let Some(bucket) = self.buckets.get(&call.bucket) else {
            return Err(Reply::error(call, 404, "NoSuchBucket", "The specified bucket does not exist"));
        };
        if session.is_some_and(|session| session.account != bucket.owner) {
            self.foreign.push(format!("{} {}/{}", call.operation, call.bucket, call.key));
            return Err(Reply::error(call, 403, "AccessDenied", "Access Denied"));
        }
        if bucket.region != call.region {
            let message = "The bucket you are attempting to access must be addressed using the specified endpoint.";
            let reply = Reply::error(call, 301, "PermanentRedirect", message);
            return Err(reply.with("x-amz-bucket-region", &bucket.region));
        }
        match call.header("x-amz-expected-bucket-owner") {
            Some(owner) if owner != bucket.owner => Err(Reply::error(call, 403, "AccessDenied", "Access Denied")),
            _ => Ok(()),
        }
    }

    fn put_object(&mut self, call: &Call) -> Answer {
        self.unless_taken(call)?;
        checked(call)?;
        let etag = tag(&call.headers, &call.body);
        let object = Object { etag, headers: call.headers.clone(), ..Object::plain(call.body.clone()) };
        let reply = encrypted(Reply::ok(), call).with("etag", format!("\"{}\"", object.etag));
        let reply = match call.header("x-amz-checksum-crc64nvme") {
            Some(_) => {
                reply.with("x-amz-checksum-crc64nvme", crc(&call.body)).with("x-amz-checksum-type", "FULL_OBJECT")
            }
            None => reply,
        };
        self.put(&call.bucket, &call.key, object);
        Ok(reply)
    }

    fn create(&mut self, call: &Call) -> Reply {
        let id = format!("upload-{}", self.draw());
        let upload = Upload {
            bucket: call.bucket.clone(),
            key: call.key.clone(),
            headers: call.headers.clone(),
            initiated: whole_second(),
            parts: std::collections::BTreeMap::new(),
        };
        self.began.insert(id.clone(), call.headers.clone());
        self.uploads.insert(id.clone(), upload);
        let reply = encrypted(Reply::ok(), call);
        let reply = match call.header("x-amz-checksum-algorithm") {
            Some(algorithm) => {
                reply.with("x-amz-checksum-algorithm", algorithm).with("x-amz-checksum-type", "FULL_OBJECT")
            }
            None => reply,
        };
        reply.xml(&format!(
            "<InitiateMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>{}</Bucket>\
             <Key>{}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
            call.bucket,
            escape(&call.key)
        ))
    }

    fn upload_part(&mut self, call: &Call) -> Answer {
        checked(call)?;
        let upload = self.upload(call)?;
        let number = call.asked("partNumber").parse().unwrap_or(0);
        let headers = upload.headers.clone();
        let part = Part { bytes: call.body.clone(), etag: tag(&headers, &call.body) };
        let tag = format!("\"{}\"", part.etag);
        upload.parts.insert(number, part);
        let created = Call { headers, ..call.clone() };
        let reply = encrypted(Reply::ok(), &created).with("etag", tag);
        // S3 computes the checksum of a part that comes without one, where it keeps that of the whole object.
        let wanted = created.header("x-amz-checksum-algorithm").is_some() || call.header(CRC).is_some();
        Ok(if wanted { reply.with(CRC, crc(&call.body)) } else { reply })
    }

    fn complete(&mut self, call: &Call) -> Answer {
        self.unless_taken(call)?;
        let upload = self.upload(call)?;
        let (bytes, tags) = assembled(call, upload)?;
        let (modified, headers) = (upload.initiated, upload.headers.clone());
        // The digest of the digests of the parts.
        let listed: Vec<_> = tags.iter().flat_map(|tag| hex::decode(tag).expect("our own tag")).collect();
        let etag = format!("{}-{}", tag(&headers, &listed), tags.len());
        let object = Object { etag, modified, headers, bytes: self.once(bytes) };
        self.uploads.remove(call.asked("uploadId"));
        self.completed.push((call.bucket.clone(), call.key.clone(), object.bytes.clone()));
        let created = Call { headers: object.headers.clone(), ..call.clone() };
        let checksum = match created.header("x-amz-checksum-algorithm") {
            Some(_) => format!(
                "<ChecksumCRC64NVME>{}</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType>",
                crc(&object.bytes)
            ),
            None => String::new(),
        };
        let body = format!(
            "<CompleteMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>{}</Bucket>\
             <Key>{}</Key><ETag>&quot;{}&quot;</ETag>{checksum}</CompleteMultipartUploadResult>",
            call.bucket,
            escape(&call.key),
            object.etag
        );
        self.put(&call.bucket, &call.key, object);
        Ok(encrypted(Reply::ok(), &created).xml(&body))
    }

    fn abort(&mut self, call: &Call) -> Answer {
        self.upload(call)?;
        self.uploads.remove(call.asked("uploadId"));
        Ok(Reply { status: 204, ..Reply::ok() })
    }

    fn upload(&mut self, call: &Call) -> Result<&mut Upload, Reply> {
        let found = self.uploads.get_mut(call.asked("uploadId"));
        found
            .filter(|upload| upload.bucket == call.bucket && upload.key == call.key)
            .ok_or_else(|| Reply::error(call, 404, "NoSuchUpload", "The specified multipart upload does not exist."))
    }

    fn unless_taken(&self, call: &Call) -> Result<(), Reply> {
        let taken = self.object(&call.bucket, &call.key).is_some();
        if taken && call.header("if-none-match") == Some("*") {
            let message = "At least one of the pre-conditions you specified did not hold";
            return Err(Reply::error(call, 412, "PreconditionFailed", message));
        }
        Ok(())
    }

    fn list(&self, call: &Call) -> Reply {
        let prefix = call.asked("prefix");
        let most = call.asked("max-keys").parse().unwrap_or(1000);
        let all = self.buckets.get(&call.bucket).into_iter().flat_map(|bucket| &bucket.objects);
        let found: Vec<_> = all.filter(|(key, _)| key.starts_with(prefix)).take(most).collect();
        let mut body = String::new();
        for (key, object) in &found {
            let _ = write!(
                body,
                "<Contents><Key>{}</Key><LastModified>{:.3}</LastModified><ETag>&quot;{}&quot;</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                escape(key),
                object.modified,
                object.etag,
                object.bytes.len()
            );
        }
        Reply::ok().xml(&format!(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{}</Name><Prefix>{}</Prefix>\
             <KeyCount>{}</KeyCount><MaxKeys>{most}</MaxKeys><IsTruncated>false</IsTruncated>{body}</ListBucketResult>",
            call.bucket,
            escape(prefix),
            found.len()
        ))
    }

    fn get(&self, call: &Call) -> Answer {
        let Some(object) = self.object(&call.bucket, &call.key) else {
            return Err(Reply::error(call, 404, "NoSuchKey", "The specified key does not exist."));
        };
        let reply = Reply::ok().with("etag", format!("\"{}\"", object.etag)).with("accept-ranges", "bytes");
        let range = call.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let first: usize = range.and_then(|(first, _)| first.parse().ok()).unwrap_or(0).min(object.bytes.len());
        let reply = match range {
            Some(_) => {
                let last = object.bytes.len().saturating_sub(1);
                let of = format!("bytes {first}-{last}/{}", object.bytes.len());
                Reply { status: 206, ..reply.with("content-range", of) }
            }
            None => reply,
        };
        Ok(Reply { body: object.bytes.slice(first..), ..reply })
    }

    fn location(&self, call: &Call) -> Reply {
        let region = &self.buckets[&call.bucket].region;
        Reply::ok().xml(&format!(
            "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{region}</LocationConstraint>"
        ))
    }

    fn delete(&mut self, call: &Call) -> Reply {
        if let Some(bucket) = self.buckets.get_mut(&call.bucket) {
            bucket.objects.remove(&call.key);
        }
        Reply { status: 204, ..Reply::ok() }
    }
}

/// AWS takes signatures that are up to 15 minutes old, or early.
fn is_skewed(call: &Call) -> bool {
    call.signed().is_some_and(|at| call.arrived.duration_since(at).abs() > SKEW)
}

/// Keys whose id says so belong to the account's root.
fn caller(call: &Call) -> Reply {
    let id = &call.access_key_id;
    let who = if id.starts_with("AKIAROOT") { "root".to_owned() } else { format!("user/{id}") };
    Reply::ok().xml(&format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
         <Arn>arn:aws:iam::999999999999:{who}</Arn><UserId>{id}</UserId><Account>999999999999</Account>\
         </GetCallerIdentityResult></GetCallerIdentityResponse>"
    ))
}

/// The bytes must be those that the checksum was made of.
fn checked(call: &Call) -> Result<(), Reply> {
    match call.header("x-amz-checksum-crc64nvme") {
        Some(given) if given != crc(&call.body) => Err(Reply::error(
            call,
            400,
            "BadDigest",
            "The CRC64NVME you specified did not match the calculated checksum.",
        )),
        _ => Ok(()),
    }
}

/// The encryption that was asked for, or the bucket's own.
fn encrypted(mut reply: Reply, call: &Call) -> Reply {
    const ALGORITHM: &str = "x-amz-server-side-encryption";
    reply = reply.with(ALGORITHM, call.header(ALGORITHM).unwrap_or("AES256"));
    for name in ["x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-bucket-key-enabled"] {
        if let Some(value) = call.header(name) {
            reply = reply.with(name, value);
        }
    }
    reply
}

/// Checks the part list, the checksums and the announced size as S3 does, and joins the parts.
fn assembled(call: &Call, upload: &Upload) -> Result<(bytes::Bytes, Vec<String>), Reply> {
    let invalid = |message: &str| Reply::error(call, 400, "InvalidPart", message);
    let listed = listed_parts(&String::from_utf8_lossy(&call.body));
    let with_checksums = upload.headers.contains_key("x-amz-checksum-algorithm");
    if !listed.is_sorted_by(|(a, ..), (b, ..)| a < b) {
        return Err(Reply::error(call, 400, "InvalidPartOrder", "The list of parts was not in ascending order."));
    }
    let mut joined = BytesMut::new();
    for (index, (number, tag, checksum)) in listed.iter().enumerate() {
        let part = upload.parts.get(number).filter(|part| part.etag == tag.trim_matches('"'));
        let part = part.ok_or_else(|| invalid("One or more of the specified parts could not be found."))?;
        if checksum.as_ref().is_some_and(|given| !with_checksums || *given != crc(&part.bytes)) {
            return Err(invalid("The checksum of a part does not match."));
        }
        if index + 1 < listed.len() && part.bytes.len() < 5 * MIB {
            return Err(Reply::error(
                call,
                400,
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed size",
            ));
        }
        joined.extend_from_slice(&part.bytes);
    }
    let joined = joined.freeze();
    match call.header("x-amz-checksum-crc64nvme") {
        Some(_) if !with_checksums => return Err(invalid("The upload was created without a checksum.")),
        Some(given) if given != crc(&joined) => {
            return Err(Reply::error(call, 400, "BadDigest", "The CRC64NVME you specified did not match."));
        }
        _ => {}
    }
    match call.header("x-amz-mp-object-size") {
        Some(size) if size != joined.len().to_string() => {
            Err(Reply::error(call, 400, "InvalidRequest", "The object size does not match."))
        }
        _ if listed.is_empty() => Err(Reply::error(call, 400, "MalformedXML", "You must specify at least one part")),
        _ => Ok((joined, listed.into_iter().map(|(_, tag, _)| tag.trim_matches('"').to_owned()).collect())),
    }
}

/// Number, entity tag and checksum of each listed part.
fn listed_parts(xml: &str) -> Vec<(u32, String, Option<String>)> {
    let field = |part: &str, name: &str| {
        let value = part.split(&format!("<{name}>")).nth(1)?.split(&format!("</{name}>")).next()?;
        Some(value.replace("&quot;", "\"").replace("&#34;", "\""))
    };
    let parts = xml.split("<Part>").skip(1);
    parts
        .filter_map(|part| {
            Some((field(part, "PartNumber")?.parse().ok()?, field(part, "ETag")?, field(part, "ChecksumCRC64NVME")))
        })
        .collect()
}
