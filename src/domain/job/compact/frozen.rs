//! The structs of compact versions 1 and 2. FROZEN: no field may be added, removed, moved or
//! retyped.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use bincode::{Decode, Encode};

use crate::domain::destination::Checksum;
use crate::domain::destination::raw::{RawAuth, RawDestination, RawMethod};
use crate::domain::job::rejected::JobIdentity;
use crate::domain::job::wire::{RawDestinationRef, RawJob, RawJobSource, VERSION};
use crate::domain::job::{Compression, IfExists, Invalid};

/// Names and values in the order of the names.
type Pairs = Vec<(String, String)>;

#[derive(Encode, Decode)]
pub(super) struct FrozenJob {
    id: String,
    url: String,
    size: Option<u64>,
    sha256: Option<[u8; 32]>,
    etag: Option<String>,
    destination: FrozenDestination,
    key: String,
    content_type: Option<String>,
    content_encoding: Option<String>,
    metadata: Pairs,
    tags: Pairs,
    storage_class: Option<String>,
    compression: FrozenCompression,
    if_exists: FrozenIfExists,
    created_at: Option<String>,
    expires_at: Option<String>,
    labels: Pairs,
}

/// Version 2: a job with a generation.
#[derive(Encode, Decode)]
pub(super) struct FrozenJob2 {
    pub(super) job: FrozenJob,
    pub(super) generation: u64,
}

#[derive(Encode, Decode)]
enum FrozenDestination {
    Id(String),
    Inline(Box<FrozenInline>),
}

/// An inline destination. It has no place for a secret: `auth.method` is always `iam_role`.
#[derive(Encode, Decode)]
struct FrozenInline {
    id: Option<String>,
    bucket: String,
    region: String,
    prefix: String,
    role_arn: Option<String>,
    external_id: Option<String>,
    kms_key_arn: Option<String>,
    bucket_key_enabled: Option<bool>,
    encryption_context: Pairs,
    expected_bucket_owner: Option<String>,
    max_concurrency: Option<NonZeroU32>,
    max_bytes_per_second: Option<NonZeroU64>,
    checksum: FrozenChecksum,
    tenant: Option<String>,
}

impl FrozenJob {
    pub(super) fn identity(&self) -> JobIdentity {
        let destination = match &self.destination {
            FrozenDestination::Id(id) => Some(id.as_str()),
            FrozenDestination::Inline(inline) => inline.id.as_deref(),
        };
        JobIdentity::of(Some(&self.id), destination)
    }

    /// The frozen form of `job`; refuses what that form has no place for.
    pub(super) fn freeze(job: &RawJob) -> Result<Self, Invalid> {
        if job.version != VERSION {
            return Err(Invalid::new("version", "the compact form of this program is that of version 1"));
        }
        if job.source.allow_unproven_length {
            return Err(Invalid::new("source.allow_unproven_length", "has no place in the compact form; send JSON"));
        }
        let job = job.clone();
        Ok(Self {
            id: job.id,
            url: job.source.url,
            size: job.source.size,
            sha256: job.source.sha256.as_deref().map(crate::domain::job::validate::sha256).transpose()?,
            etag: job.source.etag,
            destination: FrozenDestination::freeze(job.destination)?,
            key: job.key,
            content_type: job.content_type,
            content_encoding: job.content_encoding,
            metadata: job.metadata.into_iter().collect(),
            tags: job.tags.into_iter().collect(),
            storage_class: job.storage_class,
            compression: job.compression.into(),
            if_exists: job.if_exists.into(),
            created_at: job.created_at,
            expires_at: job.expires_at,
            labels: job.labels.into_iter().collect(),
        })
    }

    pub(super) fn thaw(self) -> Result<RawJob, Invalid> {
        let job = RawJob::new(self.id, self.url, self.destination.thaw()?, self.key);
        Ok(RawJob {
            source: RawJobSource {
                size: self.size,
                sha256: self.sha256.map(hex::encode),
                etag: self.etag,
                ..job.source
            },
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            metadata: unique("metadata", self.metadata)?,
            tags: unique("tags", self.tags)?,
            storage_class: self.storage_class,
            compression: self.compression.into(),
            if_exists: self.if_exists.into(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            labels: unique("labels", self.labels)?,
            ..job
        })
    }
}

fn unique(field: &str, pairs: Pairs) -> Result<BTreeMap<String, String>, Invalid> {
    let count = pairs.len();
    let all: BTreeMap<_, _> = pairs.into_iter().collect();
    if all.len() < count {
        return Err(Invalid::new(field, "a name occurs twice; give each once"));
    }
    Ok(all)
}

impl FrozenDestination {
    fn freeze(to: RawDestinationRef) -> Result<Self, Invalid> {
        let to = match to {
            RawDestinationRef::Id(id) => return Ok(Self::Id(id)),
            RawDestinationRef::Inline(inline) => *inline,
        };
        let secret = to.auth.secret_access_key.is_some() || to.auth.secret_access_key_file.is_some();
        if to.auth.method != RawMethod::IamRole || to.auth.access_key_id.is_some() || secret {
            let problem = "an inline destination may carry no secret; use iam_role, or configure the destination";
            return Err(Invalid::new("destination.auth", problem));
        }
        if to.publishers.is_some() {
            let problem = "belongs to a configured destination; leave it out";
            return Err(Invalid::new("destination.publishers", problem));
        }
        let newer = [
            ("encryption", to.encryption.is_some()),
            ("equal_parts", to.equal_parts),
            ("session_policy", to.session_policy.is_some()),
        ];
        if let Some((field, _)) = newer.iter().find(|(_, given)| *given) {
            return Err(Invalid::new(format!("destination.{field}"), "has no place in the compact form; send JSON"));
        }
        Ok(Self::Inline(Box::new(FrozenInline {
            id: to.id,
            bucket: to.bucket,
            region: to.region,
            prefix: to.prefix,
            role_arn: to.auth.role_arn,
            external_id: to.auth.external_id,
            kms_key_arn: to.kms_key_arn,
            bucket_key_enabled: to.bucket_key_enabled,
            encryption_context: to.encryption_context.into_iter().collect(),
            expected_bucket_owner: to.expected_bucket_owner,
            max_concurrency: to.max_concurrency,
            max_bytes_per_second: to.max_bytes_per_second,
            checksum: to.checksum.into(),
            tenant: to.tenant,
        })))
    }

    fn thaw(self) -> Result<RawDestinationRef, Invalid> {
        let frozen = match self {
            Self::Id(id) => return Ok(RawDestinationRef::Id(id)),
            Self::Inline(inline) => *inline,
        };
        let auth = RawAuth { role_arn: frozen.role_arn, external_id: frozen.external_id, ..RawAuth::default() };
        Ok(RawDestinationRef::Inline(Box::new(RawDestination {
            id: frozen.id,
            bucket: frozen.bucket,
            region: frozen.region,
            prefix: frozen.prefix,
            auth,
            kms_key_arn: frozen.kms_key_arn,
            bucket_key_enabled: frozen.bucket_key_enabled,
            encryption_context: unique("destination.encryption_context", frozen.encryption_context)?,
            expected_bucket_owner: frozen.expected_bucket_owner,
            max_concurrency: frozen.max_concurrency,
            max_bytes_per_second: frozen.max_bytes_per_second,
            checksum: frozen.checksum.into(),
            tenant: frozen.tenant,
            ..RawDestination::default()
        })))
    }
}

/// A frozen enum with the names of another, there and back. Their order is that of the format.
macro_rules! mirror {
    ($live:ident, $frozen:ident: $($name:ident)*) => {
        #[derive(Encode, Decode)]
        enum $frozen {
            $($name,)*
        }

        impl From<$live> for $frozen {
            fn from(live: $live) -> Self {
                match live { $($live::$name => Self::$name,)* }
            }
        }

        impl From<$frozen> for $live {
            fn from(frozen: $frozen) -> Self {
                match frozen { $($frozen::$name => Self::$name,)* }
            }
        }
    };
}

mirror!(Compression, FrozenCompression: None Gzip Zstd);
mirror!(IfExists, FrozenIfExists: Replace Keep Fail);
mirror!(Checksum, FrozenChecksum: Crc64Nvme None);
