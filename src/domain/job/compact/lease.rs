//! The lease as bytes. FROZEN, as the job is: one version byte, then these structs.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};
use bytes::Bytes;

use crate::domain::job::lease::{Checkpoint, Lease, MAX_LEASE, PackedEnd, PartDone, PartSizes, SourceMark};
use crate::domain::job::{Invalid, Rejected};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Encryption, Reason};

const VERSION_BYTE: u8 = 1;
/// More parts an upload of S3 can't have.
const MAX_PARTS: u32 = 10_000;

/// The limit is charged before anything is allocated.
const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_LEASE>> =
    bincode::config::standard().with_limit::<MAX_LEASE>();

#[derive(Encode, Decode)]
struct FrozenLease {
    body: Vec<u8>,
    content_type: Option<String>,
    backfill: bool,
    checkpoint: Option<FrozenCheckpoint>,
}

#[derive(Encode, Decode)]
struct FrozenCheckpoint {
    bucket: String,
    key: String,
    upload_id: String,
    initiated: u64,
    kms_key_arn: Option<String>,
    algorithm: Option<String>,
    answered_key_arn: Option<String>,
    checked: bool,
    sizes: FrozenSizes,
    validator: String,
    length: Option<u64>,
    parts: Vec<FrozenPart>,
}

#[derive(Encode, Decode)]
enum FrozenSizes {
    Even { part_size: u64, parts: u32 },
    Growing { first: u64, largest: u64 },
    Packed { first: u64, largest: u64 },
}

#[derive(Encode, Decode)]
struct FrozenPart {
    number: u32,
    length: u64,
    crc: Option<u64>,
    etag: Option<String>,
    packed: Option<(u64, u32)>,
}

impl Lease {
    /// The lease as bytes; `None` where it would be longer than [`MAX_LEASE`].
    pub fn encode(&self) -> Option<Bytes> {
        let mut bytes = vec![VERSION_BYTE];
        bincode::encode_into_std_write(FrozenLease::from(self), &mut bytes, CONFIG).ok()?;
        (bytes.len() <= MAX_LEASE).then(|| Bytes::from(bytes))
    }

    /// Reads a lease: its shape, its bounds, and that its parts are in order. The job in it is not
    /// looked at.
    ///
    /// # Errors
    /// The field is `lease`.
    pub fn decode(body: &[u8]) -> Result<Self, Rejected> {
        if body.len() > MAX_LEASE {
            return Err(refused("has more than 2 MiB"));
        }
        let frozen = match body.split_first() {
            Some((&VERSION_BYTE, frozen)) => frozen,
            Some((version, _)) => {
                let problem = format!(
                    "the version byte is {version}, and this worker reads {VERSION_BYTE}; upgrade the workers first"
                );
                return Err(Rejected::new(Reason::SchemaVersion, Invalid::new("lease", problem)));
            }
            None => return Err(refused("is empty")),
        };
        let (lease, read) = bincode::decode_from_slice::<FrozenLease, _>(frozen, CONFIG)
            .map_err(|_| refused("is not a lease of version 1; it is damaged, or of another content_type"))?;
        if read < frozen.len() {
            return Err(refused("has bytes after its end"));
        }
        lease.thaw()
    }
}

fn refused(problem: &str) -> Rejected {
    Rejected::job("lease", problem)
}

impl FrozenLease {
    fn from(lease: &Lease) -> Self {
        Self {
            body: lease.body.to_vec(),
            content_type: lease.content_type.clone(),
            backfill: lease.lane == Lane::Backfill,
            checkpoint: lease.checkpoint.as_ref().map(FrozenCheckpoint::from),
        }
    }

    fn thaw(self) -> Result<Lease, Rejected> {
        Ok(Lease {
            body: Bytes::from(self.body),
            content_type: self.content_type,
            lane: if self.backfill { Lane::Backfill } else { Lane::Scheduled },
            checkpoint: self.checkpoint.map(FrozenCheckpoint::thaw).transpose()?,
        })
    }
}

impl FrozenCheckpoint {
    fn from(live: &Checkpoint) -> Self {
        Self {
            bucket: live.bucket.clone(),
            key: live.key.clone(),
            upload_id: live.upload_id.clone(),
            initiated: live.initiated,
            kms_key_arn: live.kms_key_arn.clone(),
            algorithm: live.encryption.algorithm.clone(),
            answered_key_arn: live.encryption.kms_key_arn.clone(),
            checked: live.checked,
            sizes: match live.sizes {
                PartSizes::Even { part_size, parts } => FrozenSizes::Even { part_size, parts },
                PartSizes::Growing { first, largest } => FrozenSizes::Growing { first, largest },
                PartSizes::Packed { first, largest } => FrozenSizes::Packed { first, largest },
            },
            validator: live.source.validator.clone(),
            length: live.source.length,
            parts: live.parts.iter().map(FrozenPart::from).collect(),
        }
    }

    fn thaw(self) -> Result<Checkpoint, Rejected> {
        let sizes = match self.sizes {
            FrozenSizes::Even { part_size, parts } => PartSizes::Even { part_size, parts },
            FrozenSizes::Growing { first, largest } => PartSizes::Growing { first, largest },
            FrozenSizes::Packed { first, largest } => PartSizes::Packed { first, largest },
        };
        let checkpoint = Checkpoint {
            bucket: self.bucket,
            key: self.key,
            upload_id: self.upload_id,
            initiated: self.initiated,
            kms_key_arn: self.kms_key_arn,
            encryption: Encryption { algorithm: self.algorithm, kms_key_arn: self.answered_key_arn },
            checked: self.checked,
            sizes,
            source: SourceMark { validator: self.validator, length: self.length },
            parts: self.parts.into_iter().map(FrozenPart::thaw).collect(),
        };
        sound(&checkpoint).map_err(refused)?;
        Ok(checkpoint)
    }
}

/// Checks the invariants that an upload plan relies on.
fn sound(checkpoint: &Checkpoint) -> Result<(), &'static str> {
    let ascending = checkpoint.parts.windows(2).all(|pair| pair[0].number < pair[1].number);
    let numbers = checkpoint.parts.iter().all(|part| (1..=MAX_PARTS).contains(&part.number));
    let lengths = checkpoint.parts.iter().map(|part| part.length);
    let sized = match checkpoint.sizes {
        PartSizes::Even { part_size, parts } => {
            // A zero would divide by zero; the lengths of the parts follow from the plan.
            let full = checkpoint.parts.iter().all(|part| part.number <= parts && part.length <= part_size);
            part_size > 0 && (1..=MAX_PARTS).contains(&parts) && full && checkpoint.source.length.is_some()
        }
        PartSizes::Growing { first, largest } | PartSizes::Packed { first, largest } => first > 0 && largest >= first,
    };
    let packed = matches!(checkpoint.sizes, PartSizes::Packed { .. });
    let ends = checkpoint.parts.iter().all(|part| part.packed.is_some() == packed);
    let crcs = checkpoint.parts.iter().all(|part| part.crc.is_some() == checkpoint.checked);
    if !ascending || !numbers || lengths.clone().any(|length| length == 0) {
        return Err("has parts that no upload can have");
    }
    if lengths.fold(0_u64, u64::saturating_add) == u64::MAX || !sized || !ends || !crcs {
        return Err("has a plan that its parts don't follow");
    }
    if checkpoint.upload_id.is_empty() || checkpoint.bucket.is_empty() || checkpoint.key.is_empty() {
        return Err("names no upload");
    }
    Ok(())
}

impl FrozenPart {
    fn from(live: &PartDone) -> Self {
        Self {
            number: live.number,
            length: live.length,
            crc: live.crc,
            etag: live.etag.clone(),
            packed: live.packed.map(|end| (end.source, end.crc32)),
        }
    }

    fn thaw(self) -> PartDone {
        PartDone {
            number: self.number,
            length: self.length,
            crc: self.crc,
            etag: self.etag,
            packed: self.packed.map(|(source, crc32)| PackedEnd { source, crc32 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOB: &[u8] = br#"{"version":1,"id":"a/1","source":{"url":"file:///data/a"},"destination":"acme","key":"a"}"#;

    fn lease() -> Lease {
        let part = |number, length| PartDone {
            number,
            length,
            crc: Some(u64::from(number)),
            etag: Some(format!("\"{number}\"")),
            packed: None,
        };
        Lease {
            body: Bytes::from_static(JOB),
            content_type: Some("application/json".into()),
            lane: Lane::Backfill,
            checkpoint: Some(Checkpoint {
                bucket: "b".into(),
                key: "p/a".into(),
                upload_id: "u".into(),
                initiated: 1_800_000_000,
                kms_key_arn: None,
                encryption: Encryption { algorithm: Some("AES256".into()), kms_key_arn: None },
                checked: true,
                sizes: PartSizes::Even { part_size: 8 << 20, parts: 3 },
                source: SourceMark { validator: "1-2".into(), length: Some(20 << 20) },
                parts: vec![part(1, 8 << 20), part(3, 4 << 20)],
            }),
        }
    }

    #[test]
    fn a_lease_comes_back_as_it_was() {
        let read = Lease::decode(&lease().encode().unwrap()).unwrap();
        assert_eq!(read, lease());
        assert_eq!(read.job(Some("a/1")).unwrap().id.as_str(), "a/1");
        let bare = Lease { checkpoint: None, lane: Lane::Scheduled, content_type: None, ..lease() };
        assert_eq!(Lease::decode(&bare.encode().unwrap()).unwrap(), bare);
    }

    #[test]
    fn the_unbroken_parts_end_at_the_first_gap() {
        let checkpoint = lease().checkpoint.unwrap();
        assert_eq!(checkpoint.unbroken().len(), 1);
        assert_eq!(checkpoint.bytes(), 12 << 20);
    }

    #[test]
    fn the_largest_upload_fits() {
        let mut lease = lease();
        let checkpoint = lease.checkpoint.as_mut().unwrap();
        checkpoint.sizes = PartSizes::Even { part_size: 5 << 30, parts: MAX_PARTS };
        checkpoint.parts = (1..=MAX_PARTS)
            .map(|number| PartDone {
                number,
                length: 5 << 30,
                crc: Some(u64::MAX),
                etag: Some(format!("\"{}\"", "f".repeat(32))),
                packed: None,
            })
            .collect();
        lease.body = Bytes::from(vec![b' '; 256 * 1024]);
        assert!(lease.encode().is_some_and(|bytes| bytes.len() <= MAX_LEASE));
    }

    type Spoil = fn(&mut Checkpoint);

    #[test]
    fn nonsense_is_refused_and_named() {
        let good = lease().encode().unwrap();
        let mut longer = good.to_vec();
        longer.push(0);
        let other_version = [&[9][..], &good[1..]].concat();
        for bad in [&[][..], &longer, &good[..good.len() - 1], &other_version, &[1, 251, 255, 255]] {
            assert_eq!(Lease::decode(bad).unwrap_err().field, "lease");
        }
        let spoils: [Spoil; 8] = [
            |c| c.parts.reverse(),
            |c| c.parts[0].number = 0,
            |c| c.parts[1].number = 4,
            |c| c.parts[0].length = 0,
            |c| c.parts[0].crc = None,
            |c| c.sizes = PartSizes::Even { part_size: 0, parts: 3 },
            |c| c.sizes = PartSizes::Packed { first: 1, largest: 1 },
            |c| c.upload_id.clear(),
        ];
        for spoil in spoils {
            let mut bad = lease();
            spoil(bad.checkpoint.as_mut().unwrap());
            assert!(Lease::decode(&bad.encode().unwrap()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_job_in_a_lease_is_checked_as_any_other() {
        let bad = Lease { body: Bytes::from_static(b"{\"version\":1}"), ..lease() };
        assert!(bad.job(None).is_err());
        assert_eq!(lease().job(Some("b")).unwrap_err().field, "message_id");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Lease::decode(&bytes);
            let mut versioned = vec![VERSION_BYTE];
            versioned.extend(bytes);
            let _ = Lease::decode(&versioned);
        }
    }
}
