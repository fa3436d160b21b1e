//! Asked = got: what S3 says about encryption and checksums is compared with what was asked.

use aws_sdk_s3::types::ServerSideEncryption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::domain::destination::Destination;
use crate::domain::outcome::{Encryption, Failure, Reason};

/// A CRC-64/NVME as S3 writes it: base64 of its 8 bytes, the most significant first.
pub(super) fn crc_text(crc: u64) -> String {
    STANDARD.encode(crc.to_be_bytes())
}

/// Compares the encryption of a reply with the one that the destination asks for.
///
/// For an alias only the algorithm can be compared: S3 replies with the key behind it. Without a
/// configured encryption any one is accepted, and without a configured key any key.
pub(super) fn encryption(
    destination: &Destination,
    algorithm: Option<&ServerSideEncryption>,
    key: Option<&str>,
) -> Result<Encryption, Failure> {
    let got = Encryption { algorithm: algorithm.map(|a| a.as_str().to_owned()), kms_key_arn: key.map(str::to_owned) };
    let Some(asked) = destination.algorithm else { return Ok(got) };
    let asked_key = destination.encryption.as_ref().map(|kms| &kms.key_arn);
    let algorithm_fits = got.algorithm.as_deref() == Some(asked.as_str());
    let key_fits = asked_key.is_none_or(|asked| asked.is_alias() || key == Some(asked.as_str()));
    if algorithm_fits && key_fits {
        return Ok(got);
    }
    let said = match (&got.algorithm, key) {
        (None, _) => "said nothing about encryption".to_owned(),
        (Some(algorithm), None) => format!("says {algorithm}"),
        (Some(algorithm), Some(key)) => format!("says {algorithm} with {key}"),
    };
    let with = asked_key.map(|key| format!(" with {}", key.as_str())).unwrap_or_default();
    let message = format!("asked for {}{with}, but S3 {said}", asked.as_str());
    let hint = match asked_key {
        Some(_) => "use the ARN of the key itself, and check that the store honours encryption headers",
        None => "check that the store honours encryption headers, or remove encryption from the destination",
    };
    Err(Failure::new(Reason::EncryptionMismatch, message).hint(hint))
}

/// Compares the checksum of a reply, where it has one, with ours.
pub(super) fn checksum(ours: Option<&str>, reply: Option<&str>) -> Result<(), Failure> {
    match (ours, reply) {
        (Some(ours), Some(reply)) if ours != reply => {
            let message = format!("S3 says the CRC-64/NVME of the object is {reply}, the bytes sent have {ours}");
            Err(Failure::new(Reason::ChecksumMismatch, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::destination::raw::{RawAuth, RawDestination};
    use crate::domain::destination::{DestinationId, EncryptionAlgorithm};

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn destination(key: Option<&str>) -> Destination {
        let auth = RawAuth { role_arn: Some("arn:aws:iam::123456789012:role/r".into()), ..RawAuth::default() };
        let raw = RawDestination {
            bucket: "bucket".into(),
            region: "eu-west-1".into(),
            auth,
            kms_key_arn: key.map(str::to_owned),
            ..RawDestination::default()
        };
        raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
    }

    #[test]
    fn what_was_asked_must_come_back() {
        let kms = ServerSideEncryption::AwsKms;
        let asked = destination(Some(KEY));
        assert!(encryption(&asked, Some(&kms), Some(KEY)).is_ok());
        for (algorithm, key) in
            [(None, None), (Some(&ServerSideEncryption::Aes256), None), (Some(&kms), None), (Some(&kms), Some("other"))]
        {
            assert_eq!(encryption(&asked, algorithm, key).unwrap_err().reason, Reason::EncryptionMismatch);
        }
    }

    #[test]
    fn an_alias_fits_any_key_and_nothing_asked_fits_anything() {
        let alias = destination(Some("arn:aws:kms:eu-west-1:123456789012:alias/a"));
        assert!(encryption(&alias, Some(&ServerSideEncryption::AwsKms), Some(KEY)).is_ok());
        assert!(encryption(&alias, Some(&ServerSideEncryption::Aes256), None).is_err());
        assert!(encryption(&destination(None), Some(&ServerSideEncryption::Aes256), None).is_ok());
        assert!(encryption(&destination(None), None, None).is_ok());
    }

    #[test]
    fn the_algorithm_alone_is_compared_too() {
        let asked = |algorithm| Destination { algorithm: Some(algorithm), ..destination(None) };
        let (s3, kms) = (ServerSideEncryption::Aes256, ServerSideEncryption::AwsKms);
        assert!(encryption(&asked(EncryptionAlgorithm::Aes256), Some(&s3), None).is_ok());
        assert!(encryption(&asked(EncryptionAlgorithm::Kms), Some(&kms), Some(KEY)).is_ok(), "whichever key");
        for (algorithm, reply) in [
            (EncryptionAlgorithm::Aes256, Some(&kms)),
            (EncryptionAlgorithm::Aes256, None),
            (EncryptionAlgorithm::Kms, Some(&s3)),
            (EncryptionAlgorithm::KmsDsse, Some(&kms)),
        ] {
            let mismatch = encryption(&asked(algorithm), reply, None).unwrap_err();
            assert_eq!(mismatch.reason, Reason::EncryptionMismatch);
            assert!(mismatch.message.contains(algorithm.as_str()), "{}", mismatch.message);
        }
    }

    #[test]
    fn a_wrong_checksum_is_our_defect() {
        assert!(checksum(Some("a"), Some("a")).is_ok());
        assert!(checksum(Some("a"), None).is_ok());
        assert!(checksum(None, Some("b")).is_ok());
        assert_eq!(checksum(Some("a"), Some("b")).unwrap_err().reason, Reason::ChecksumMismatch);
    }

    #[test]
    fn checksums_are_written_as_s3_writes_them() {
        // The check value of CRC-64/NVME for "123456789" is 0xae8b14860a799888.
        assert_eq!(crc_text(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"123456789")), "rosUhgp5mIg=");
    }
}
