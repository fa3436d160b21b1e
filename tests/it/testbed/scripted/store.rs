//! State of the scripted S3 and STS.

use std::collections::BTreeMap;
use std::time::Instant;

use base64::Engine as _;
use bytes::Bytes;
use jiff::Timestamp;

/// An object as it was stored.
#[derive(Debug, Clone)]
pub struct Object {
    pub bytes: Bytes,
    pub etag: String,
    /// For multipart objects the time of initiation, as in S3.
    pub modified: Timestamp,
    /// The headers of the call that made it: encryption, content type, metadata.
    pub headers: BTreeMap<String, String>,
}

impl Object {
    pub fn plain(bytes: Bytes) -> Self {
        let etag = etag(&bytes);
        Self { bytes, etag, modified: whole_second(), headers: BTreeMap::new() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Debug, Clone)]
pub struct Part {
    pub bytes: Bytes,
    pub etag: String,
}

#[derive(Debug)]
pub struct Upload {
    pub bucket: String,
    pub key: String,
    pub headers: BTreeMap<String, String>,
    pub initiated: Timestamp,
    pub parts: BTreeMap<u32, Part>,
}

#[derive(Debug)]
pub struct Bucket {
    pub region: String,
    pub owner: String,
    pub objects: BTreeMap<String, Object>,
}

#[derive(Debug)]
pub struct Session {
    /// The role, and its account.
    pub role: String,
    pub account: String,
    /// The access key id that asked for it.
    pub caller: String,
    pub ends: Instant,
}

#[derive(Debug, Default)]
pub struct Store {
    pub buckets: BTreeMap<String, Bucket>,
    pub uploads: BTreeMap<String, Upload>,
    pub sessions: BTreeMap<String, Session>,
    /// Calls with one customer's session for another customer's bucket.
    pub foreign: Vec<String>,
    /// Objects that the test itself put there.
    pub given: Vec<String>,
    /// The headers that every upload was begun with.
    pub began: BTreeMap<String, BTreeMap<String, String>>,
    /// Objects made visible by CompleteMultipartUpload.
    pub completed: Vec<(String, String, Bytes)>,
    pub drawn: u32,
    /// The external id that trust policies ask for.
    pub trust: Option<String>,
    /// Bodies by their digest, where equal ones are to be kept once.
    pub bodies: Option<BTreeMap<String, Bytes>>,
}

impl Store {
    pub fn make_bucket(&mut self, name: &str, region: &str, owner: &str) {
        let new = || Bucket { region: String::new(), owner: String::new(), objects: BTreeMap::new() };
        let bucket = self.buckets.entry(name.to_owned()).or_insert_with(new);
        (bucket.region, bucket.owner) = (region.to_owned(), owner.to_owned());
    }

    pub fn put(&mut self, bucket: &str, key: &str, object: Object) {
        self.buckets.get_mut(bucket).expect("the bucket was made").objects.insert(key.to_owned(), object);
    }

    pub fn object(&self, bucket: &str, key: &str) -> Option<Object> {
        self.buckets.get(bucket)?.objects.get(key).cloned()
    }

    pub fn count(&self, bucket: &str) -> usize {
        self.buckets.get(bucket).map_or(0, |bucket| bucket.objects.len())
    }

    pub fn expire_sessions(&mut self, of: impl Fn(&Session) -> bool) {
        self.sessions.values_mut().filter(|session| of(session)).for_each(|session| session.ends = Instant::now());
    }

    /// The same bytes, kept once where the store is thrifty.
    pub fn once(&mut self, bytes: Bytes) -> Bytes {
        match &mut self.bodies {
            Some(bodies) => bodies.entry(etag(&bytes)).or_insert(bytes).clone(),
            None => bytes,
        }
    }

    pub fn draw(&mut self) -> u32 {
        self.drawn += 1;
        self.drawn
    }
}

/// The MD5 of the bytes, as S3 gives it where no KMS key encrypts.
pub fn etag(bytes: &[u8]) -> String {
    use md5::Digest as _;
    hex::encode(md5::Md5::digest(bytes))
}

/// As under a KMS key: no digest of the bytes.
pub fn opaque(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(&sha2::Sha256::digest(bytes)[..16])
}

/// The tag of an object or part that was made with these headers.
pub fn tag(headers: &BTreeMap<String, String>, bytes: &[u8]) -> String {
    let kms = headers.get("x-amz-server-side-encryption").is_some_and(|algorithm| algorithm.starts_with("aws:kms"));
    if kms { opaque(bytes) } else { etag(bytes) }
}

/// The CRC-64/NVME as S3 writes it.
pub fn crc(bytes: &[u8]) -> String {
    let value = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    base64::engine::general_purpose::STANDARD.encode(value.to_be_bytes())
}

/// S3 keeps whole seconds.
pub fn whole_second() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}
