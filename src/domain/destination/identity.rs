//! Identity of a destination: what keeps two customers' destinations apart.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::{Auth, Destination, DestinationId, Invalid};

/// Mark between the id and the digest. No id contains it.
const MARK: char = '~';
/// Bytes of the digest.
const DIGEST_BYTES: usize = 16;

/// Identity of a destination: its id, and for one that came with a job also a digest of tenant,
/// role, external id, bucket, region, prefix and KMS key. Everything that a worker remembers of a
/// destination goes by it; metric labels, routing keys and what people read go by the id.
///
/// As text, in control messages and headers: `acme`, or `acme~` and 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationIdentity {
    id: DestinationId,
    digest: Option<[u8; DIGEST_BYTES]>,
}

impl DestinationIdentity {
    /// Returns the identity of a configured destination.
    pub fn configured(id: DestinationId) -> Self {
        Self { id, digest: None }
    }

    /// Returns the identity of a destination that came with a job.
    pub(super) fn inline(destination: &Destination) -> Self {
        let (principal, external_id) = match &destination.auth {
            Auth::IamRole { role_arn, external_id } => (role_arn.as_str(), external_id.as_ref()),
            Auth::AccessKey { access_key_id, .. } => (access_key_id.as_str(), None),
        };
        let parts = [
            destination.tenant.as_deref(),
            Some(principal),
            external_id.map(super::ExternalId::expose),
            Some(destination.bucket.as_str()),
            Some(destination.region.as_str()),
            Some(destination.prefix.as_str()),
            destination.encryption.as_ref().map(|kms| kms.key_arn.as_str()),
        ];
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, so that no two lists of parts have the same bytes.
            hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&hash.finalize()[..DIGEST_BYTES]);
        Self { id: destination.id.clone(), digest: Some(digest) }
    }

    /// Returns the id, by which people and routing keys know the destination.
    pub fn id(&self) -> &DestinationId {
        &self.id
    }

    /// Returns true for a destination that came with a job.
    pub fn is_inline(&self) -> bool {
        self.digest.is_some()
    }

    /// Returns true if a command for `self` is meant for `other`, too: a bare id stands for every
    /// destination of that id, as people know no other name.
    pub fn covers(&self, other: &Self) -> bool {
        self.id == other.id && (self.digest.is_none() || self.digest == other.digest)
    }

    /// Parses the text form; the error's field is `destination`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refused = |problem: &str| Invalid::new("destination", problem);
        let (id, digest) = text.split_once(MARK).map_or((text, None), |(id, digest)| (id, Some(digest)));
        let id = DestinationId::parse(id).map_err(|invalid| refused(&invalid.problem))?;
        let digest = digest.map(|digest| {
            let mut bytes = [0; DIGEST_BYTES];
            hex::decode_to_slice(digest, &mut bytes)
                .map_err(|_| refused("is an id, or an id, \"~\" and 32 hexadecimal digits"))?;
            Ok(bytes)
        });
        Ok(Self { id, digest: digest.transpose()? })
    }
}

impl fmt::Display for DestinationIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)?;
        self.digest.map_or(Ok(()), |digest| write!(f, "{MARK}{}", hex::encode(digest)))
    }
}

impl fmt::Debug for DestinationIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::destination::raw::RawDestination;

    fn raw(change: impl FnOnce(&mut RawDestination)) -> RawDestination {
        let mut raw = RawDestination { id: Some("acme".to_owned()), ..RawDestination::default() };
        (raw.bucket, raw.region, raw.prefix) = ("bucket".into(), "eu-central-1".into(), "a/".into());
        raw.auth.role_arn = Some("arn:aws:iam::111111111111:role/consign".to_owned());
        change(&mut raw);
        raw
    }

    fn inline(change: impl FnOnce(&mut RawDestination)) -> DestinationIdentity {
        raw(change).validate_inline().unwrap().identity
    }

    #[test]
    fn every_part_that_leads_elsewhere_makes_another_destination() {
        let same = inline(|_| ());
        let others: [fn(&mut RawDestination); 8] = [
            |raw| raw.id = Some("beta".to_owned()),
            |raw| raw.tenant = Some("a".to_owned()),
            |raw| raw.auth.role_arn = Some("arn:aws:iam::111111111112:role/consign".to_owned()),
            |raw| raw.auth.external_id = Some("one".to_owned()),
            |raw| raw.bucket = "other".to_owned(),
            |raw| raw.region = "eu-west-1".to_owned(),
            |raw| raw.prefix = "b/".to_owned(),
            |raw| {
                raw.kms_key_arn =
                    Some("arn:aws:kms:eu-central-1:111111111111:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned());
            },
        ];
        let mut all: Vec<_> = others.into_iter().map(inline).chain([same.clone()]).collect();
        all.push(raw(|_| ()).validate(DestinationId::parse("acme").unwrap()).unwrap().identity);
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(
            inline(|raw| raw.max_concurrency = std::num::NonZeroU32::new(1)),
            same,
            "a limit leads nowhere else"
        );
    }

    #[test]
    fn the_identity_of_a_configured_destination_is_its_id() {
        let configured = DestinationIdentity::configured(DestinationId::parse("acme").unwrap());
        assert_eq!(configured.to_string(), "acme");
        assert!(configured.covers(&inline(|_| ())) && !inline(|_| ()).covers(&configured));
        assert!(!inline(|_| ()).covers(&inline(|raw| raw.bucket = "other".to_owned())));
    }

    #[test]
    fn the_external_id_does_not_show() {
        let shown = inline(|raw| raw.auth.external_id = Some("marked-id".to_owned())).to_string();
        assert!(!shown.contains("marked"), "{shown}");
    }

    #[test]
    fn the_text_form_is_read_and_nothing_else() {
        for text in ["acme", "acme~00112233445566778899aabbccddeeff"] {
            assert_eq!(DestinationIdentity::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "~", "Acme", "acme~", "acme~00", "acme~zz112233445566778899aabbccddeeff", "a~b~c"] {
            assert_eq!(DestinationIdentity::parse(text).unwrap_err().field, "destination", "{text}");
        }
    }

    proptest! {
        /// No text can move from one part to the next without a change of the identity.
        #[test]
        fn parts_are_kept_apart(bucket in "[a-z]{3,6}", prefix in "[a-z]{1,6}", tenant in "[a-z]{0,4}", cut in 0_usize..4) {
            let of = |tenant: &str, bucket: &str, prefix: &str| {
                inline(|raw| {
                    (raw.bucket, raw.prefix) = (bucket.to_owned(), prefix.to_owned());
                    raw.tenant = (!tenant.is_empty()).then(|| tenant.to_owned());
                })
            };
            let moved = format!("{tenant}{}", &bucket[..cut.min(bucket.len() - 3)]);
            let rest = &bucket[cut.min(bucket.len() - 3)..];
            let (one, other) = (of(&tenant, &bucket, &prefix), of(&moved, rest, &prefix));
            prop_assert_eq!(one == other, (moved.as_str(), rest) == (tenant.as_str(), bucket.as_str()));
            prop_assert_eq!(DestinationIdentity::parse(&one.to_string()).unwrap(), one);
        }
    }
}
