//! The bodies of S3's and STS's answers, as far as the SDK reads them.

const S3: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
const STS: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const ROLE: &str = "arn:aws:sts::123456789012:assumed-role/consign-bench/consign-bench";
const REQUEST: &str =
    "<ResponseMetadata><RequestId>00000000-0000-0000-0000-000000000000</RequestId></ResponseMetadata>";

pub fn created(bucket: &str, key: &str, upload: &str) -> String {
    format!(
        "<InitiateMultipartUploadResult xmlns=\"{S3}\"><Bucket>{bucket}</Bucket><Key>{key}</Key>\
         <UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
    )
}

pub fn completed(bucket: &str, key: &str, etag: &str, crc64nvme: Option<&str>) -> String {
    let checksum = crc64nvme.map_or(String::new(), |crc| {
        format!("<ChecksumCRC64NVME>{crc}</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType>")
    });
    format!(
        "<CompleteMultipartUploadResult xmlns=\"{S3}\"><Location>/{bucket}/{key}</Location><Bucket>{bucket}</Bucket>\
         <Key>{key}</Key><ETag>&quot;{etag}&quot;</ETag>{checksum}</CompleteMultipartUploadResult>"
    )
}

pub fn list(bucket: &str) -> String {
    format!(
        "<ListBucketResult xmlns=\"{S3}\"><Name>{bucket}</Name><Prefix></Prefix><KeyCount>0</KeyCount>\
         <MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"
    )
}

pub fn no_such_upload() -> String {
    "<Error><Code>NoSuchUpload</Code><Message>The specified upload does not exist.</Message></Error>".to_owned()
}

pub fn bad_digest() -> String {
    "<Error><Code>BadDigest</Code><Message>The CRC64NVME did not match the calculated checksum.</Message></Error>"
        .to_owned()
}

pub fn no_such_bucket() -> String {
    "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>".to_owned()
}

pub fn slow_down() -> String {
    "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>".to_owned()
}

/// Credentials for an hour, the most that role chaining allows.
pub fn assumed() -> String {
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    format!(
        "<AssumeRoleResponse xmlns=\"{STS}\"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROABENCH:consign-bench\
         </AssumedRoleId><Arn>{ROLE}</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIABENCHBENCHBENCHB</AccessKeyId>\
         <SecretAccessKey>bench</SecretAccessKey><SessionToken>bench</SessionToken><Expiration>{}</Expiration>\
         </Credentials></AssumeRoleResult>{REQUEST}</AssumeRoleResponse>",
        end.strftime("%Y-%m-%dT%H:%M:%SZ")
    )
}

pub fn caller_identity() -> String {
    format!(
        "<GetCallerIdentityResponse xmlns=\"{STS}\"><GetCallerIdentityResult><Arn>{ROLE}</Arn><UserId>AROABENCH</UserId>\
         <Account>123456789012</Account></GetCallerIdentityResult>{REQUEST}</GetCallerIdentityResponse>"
    )
}
