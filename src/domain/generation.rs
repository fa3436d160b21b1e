//! Order among the refreshes of one object.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::destination::DestinationIdentity;

/// Namespace of the digests of objects, drawn once.
const OBJECT_NAMESPACE: Uuid = Uuid::from_u128(0x8c1e_40d7_92f6_4b1c_a3d5_6e0b_71f8_2c94);

/// Digest of a destination and a key, the same in every worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectDigest(Uuid);

impl ObjectDigest {
    /// Returns the digest of an object; `key` is below the destination's prefix.
    pub fn of(destination: &DestinationIdentity, key: &str) -> Self {
        Self(Uuid::new_v5(&OBJECT_NAMESPACE, format!("{destination}\n{key}").as_bytes()))
    }

    /// Parses the text form.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl fmt::Display for ObjectDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Object that a job writes, and the generation that it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectGeneration {
    /// Object.
    pub object: ObjectDigest,
    /// Generation: of those that are delivered, the highest stays.
    pub generation: u64,
}

impl ObjectGeneration {
    /// The next lower one: this one, and all above it, are newer.
    #[must_use]
    pub fn below(self) -> Self {
        Self { generation: self.generation.saturating_sub(1), ..self }
    }
}

/// Delivered job whose generation is above that of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewerDelivery {
    /// Its generation.
    pub generation: u64,
    /// Its id.
    pub job: Arc<str>,
}

impl fmt::Display for NewerDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {})", self.job, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_differ_by_destination_and_key() {
        let of =
            |destination: &str, key: &str| ObjectDigest::of(&DestinationIdentity::parse(destination).unwrap(), key);
        assert_ne!(of("acme", "a"), of("acme", "b"));
        assert_ne!(of("acme", "a"), of("beta", "a"));
        assert_ne!(of("acme", "a"), of("acme~00112233445566778899aabbccddeeff", "a"));
        assert_eq!(ObjectDigest::parse(&of("acme", "a").to_string()), Some(of("acme", "a")));
        // Workers of different versions must agree.
        assert_eq!(of("acme", "a/b.csv").to_string(), "ee46aaf2-af69-5dfc-8dd5-951bc68a4347");
    }
}
