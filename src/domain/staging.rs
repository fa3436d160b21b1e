//! Staging places of source files, and the tenants that they are bound to.

use std::fmt;
use std::sync::Arc;

use crate::domain::destination::{AccountId, BucketName, Invalid, Prefix};

/// The placeholder for the tenant of a destination: a whole segment of a path.
const TENANT: &str = "{tenant}";

/// The path of a folder, in which the segment `{tenant}` stands for the tenant of a job's
/// destination.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantFolder(Arc<str>);

/// The reason why a destination has no folder of its own. Displays as a sentence about the
/// destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoTenant {
    /// The destination came in the job: nobody vouches for the tenant that it claims.
    #[error(
        "is for tenants of configured destinations, and the destination came with the job; configure it under [destinations]"
    )]
    Inline,
    /// The configured destination has no tenant.
    #[error("needs the key \"tenant\" of the destination, which is not set; set it under [destinations]")]
    Missing,
    /// The tenant is no name of a folder.
    #[error(
        "needs a \"tenant\" of the destination that is a folder's name: 1-128 of A-Z, a-z, 0-9, \".\", \"_\" and \"-\" that \
         begin with a letter or digit"
    )]
    Invalid,
}

/// The destination that a source is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceReader<'a> {
    /// A configured destination, with its tenant.
    Configured(Option<&'a str>),
    /// A destination that came with the job. What it says of its tenant does not count.
    Inline,
}

impl<'a> SourceReader<'a> {
    /// Returns the tenant as a segment of a path.
    fn segment(self) -> Result<&'a str, NoTenant> {
        match self {
            Self::Inline => Err(NoTenant::Inline),
            Self::Configured(None) => Err(NoTenant::Missing),
            Self::Configured(Some(tenant)) if is_segment(tenant) => Ok(tenant),
            Self::Configured(Some(_)) => Err(NoTenant::Invalid),
        }
    }
}

fn is_segment(tenant: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=128).contains(&tenant.len()) && tenant.bytes().all(inner) && tenant.as_bytes()[0].is_ascii_alphanumeric()
}

impl TenantFolder {
    /// Parses a path. Braces are allowed only in segments that are `{tenant}`. The error's field is
    /// `folder`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.split('/').any(|segment| segment != TENANT && segment.contains(['{', '}'])) {
            let problem = "has braces; {tenant} is the only placeholder, and a whole segment between two \"/\"";
            return Err(Invalid::new("folder", problem));
        }
        Ok(Self(text.into()))
    }

    /// Returns true if the folder is another one for each tenant.
    pub fn is_bound(&self) -> bool {
        self.0.contains(TENANT)
    }

    /// The path before the first `{tenant}`: the folder that holds all tenants.
    pub fn shared(&self) -> &str {
        self.0.find(TENANT).map_or(&self.0, |at| &self.0[..at])
    }

    /// Returns the path for a reader.
    ///
    /// # Errors
    /// The path has the placeholder, and the reader has no tenant for it.
    pub fn filled(&self, reader: SourceReader<'_>) -> Result<String, NoTenant> {
        if self.is_bound() { Ok(self.0.replace(TENANT, reader.segment()?)) } else { Ok(self.0.to_string()) }
    }
}

impl fmt::Debug for TenantFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A staging place on S3: a bucket, or a folder in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagingPlace {
    /// The bucket.
    pub bucket: BucketName,
    /// The folder: empty, or ending in `/`.
    pub prefix: TenantFolder,
    /// The account that must own the bucket; `None` sends no such header.
    pub owner: Option<AccountId>,
}

impl StagingPlace {
    /// Parses a place. The errors' fields are `bucket`, `prefix` and `owner`.
    pub fn parse(bucket: &str, prefix: &str, owner: Option<&str>) -> Result<Self, Invalid> {
        let named = |field: &'static str| move |invalid: Invalid| Invalid::new(field, invalid.problem);
        let prefix = Prefix::parse(prefix)?;
        Ok(Self {
            bucket: BucketName::parse(bucket)?,
            prefix: TenantFolder::parse(prefix.as_str()).map_err(named("prefix"))?,
            owner: owner.map(AccountId::parse).transpose().map_err(named("owner"))?,
        })
    }

    /// Returns true if a key can be in both places for different readers: then one place would
    /// undo what the other one binds to a tenant.
    pub fn undoes(&self, other: &Self) -> bool {
        let (one, two) = (self.prefix.shared(), other.prefix.shared());
        let nested = one.starts_with(two) || two.starts_with(one);
        let bound = (self.prefix.is_bound(), other.prefix.is_bound());
        self.bucket == other.bucket && nested && (bound.0 != bound.1 || bound == (true, true) && one != two)
    }
}

#[cfg(test)]
mod tests;
