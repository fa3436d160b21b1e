//! Checks of names, parts and checksums, as S3 makes them.

use crc_fast::{CrcAlgorithm, checksum_combine};
use s3s::dto::{CompleteMultipartUploadInput, CompletedPart};
use s3s::{S3Result, s3_error};

use super::body::{ReceivedBody, bad_digest, crc_text};
use super::memory::UnfinishedUpload;

/// The smallest part but for the last
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
const LEAST_PART: u64 = 5 << 20;
/// The longest name a file may have; the store behind names its notes after bucket and key in
/// base64.
const NAME_LIMIT: usize = 255;

/// S3 takes 1,024 bytes; the store behind less.
pub(super) fn fits(bucket: &str, key: &str) -> S3Result<()> {
    let noted = (bucket.len() + key.len()).div_ceil(3) * 4 + ".bucket-.object-.upload-.metadata.json".len() + 36;
    if noted <= NAME_LIMIT && key.split('/').all(|name| name.len() <= NAME_LIMIT) {
        return Ok(());
    }
    Err(s3_error!(KeyTooLongError, "Your key is too long for this store, which keeps objects as files."))
}

/// Checks what is to be put together as S3 does, and gives the checksum of the whole.
pub(super) fn assembled(input: &CompleteMultipartUploadInput, upload: &UnfinishedUpload) -> S3Result<u64> {
    let listed = input.multipart_upload.as_ref().and_then(|listed| listed.parts.as_deref()).unwrap_or_default();
    let parts: Vec<ReceivedBody> = listed.iter().map(|part| known(part, upload)).collect::<S3Result<_>>()?;
    let (first, rest) = parts.split_first().ok_or_else(|| s3_error!(InvalidPart, "there are no parts"))?;
    if listed.windows(2).any(|two| two[0].part_number >= two[1].part_number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    let but_last = &parts[..parts.len().saturating_sub(1)];
    if but_last.iter().any(|part| part.length < LEAST_PART) {
        return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
    }
    let length: u64 = parts.iter().map(|part| part.length).sum();
    if input.mpu_object_size.is_some_and(|asked| u64::try_from(asked) != Ok(length)) {
        return Err(s3_error!(InvalidRequest, "The provided x-amz-mp-object-size does not match the parts."));
    }
    let combine =
        |whole: u64, part: &ReceivedBody| checksum_combine(CrcAlgorithm::Crc64Nvme, whole, part.crc, part.length);
    let crc = rest.iter().fold(first.crc, combine);
    match &input.checksum_crc64nvme {
        Some(asked) if *asked != crc_text(crc) => Err(bad_digest()),
        _ => Ok(crc),
    }
}

fn known(part: &CompletedPart, upload: &UnfinishedUpload) -> S3Result<ReceivedBody> {
    let seen = part.part_number.and_then(|number| upload.parts.get(&number)).copied();
    let seen = seen.ok_or_else(|| s3_error!(InvalidPart, "One or more of the specified parts could not be found."))?;
    match &part.checksum_crc64nvme {
        Some(asked) if *asked != crc_text(seen.crc) => {
            Err(s3_error!(InvalidPart, "A part's checksum is not that of what was uploaded."))
        }
        _ => Ok(seen),
    }
}
