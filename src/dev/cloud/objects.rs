//! S3 over a folder, with what the store behind leaves out: encryption, checksums of parts and
//! whole objects, regions, the limits of names, and one fault on purpose.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use s3s::dto::{
    BucketLocationConstraint, ChecksumType, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, GetBucketLocationInput, GetBucketLocationOutput,
    GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListBucketsInput, ListBucketsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    PutObjectInput, PutObjectOutput, ServerSideEncryption, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

use super::body;
use super::body::crc_text;
use super::limits::{assembled, fits};
use super::memory::{Memory, RequestedEncryption, UnfinishedUpload, forget_uploads};
use super::{Customer, InjectedFault};

/// The buckets.
pub(super) struct Objects {
    root: PathBuf,
    files: FileSystem,
    memory: Arc<Memory>,
    customers: Vec<Arc<Customer>>,
    injected_fault: Option<InjectedFault>,
    fault_injected: AtomicBool,
}

impl Objects {
    /// Serves the folders below `root` as buckets, and makes those of the customers.
    pub(super) fn open(
        root: &Path,
        memory: Arc<Memory>,
        customers: Vec<Arc<Customer>>,
        injected_fault: Option<InjectedFault>,
    ) -> std::io::Result<Self> {
        for customer in &customers {
            std::fs::create_dir_all(root.join(&customer.bucket))?;
        }
        forget_uploads(root)?;
        let files = FileSystem::new(root).map_err(|problem| std::io::Error::other(S3Error::from(problem)))?;
        let (root, fault_injected) = (root.to_owned(), AtomicBool::new(false));
        Ok(Self { root, files, memory, customers, injected_fault, fault_injected })
    }

    fn customer(&self, bucket: &str) -> S3Result<&Customer> {
        let customer = self.customers.iter().find(|customer| customer.bucket == bucket);
        customer.map(AsRef::as_ref).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }

    /// RequestedEncryption that the request asks for, if the bucket's owner has such a key; else
    /// the bucket's default.
    fn encryption(
        &self,
        bucket: &str,
        sse: Option<&ServerSideEncryption>,
        key: Option<&String>,
        bucket_key: Option<bool>,
    ) -> S3Result<RequestedEncryption> {
        let customer = self.customer(bucket)?;
        let Some(sse) = sse.filter(|sse| sse.as_str() != ServerSideEncryption::AES256) else {
            return Ok(RequestedEncryption::bucket_default());
        };
        if key.is_some() && key != customer.kms_key_arn.as_ref() {
            let code = S3ErrorCode::Custom("KMS.NotFoundException".into());
            let mut error = S3Error::with_message(code, "the key is not known");
            error.set_status_code(http::StatusCode::BAD_REQUEST);
            return Err(error);
        }
        Ok(RequestedEncryption { algorithm: sse.as_str().to_owned(), key: key.cloned(), bucket_key })
    }

    /// Returns the unfinished upload, or `NoSuchUpload`. The store behind takes an upload
    /// off its list before it puts the parts together: when the client goes in between, the upload
    /// is gone, and would deny it as another caller's.
    fn upload(&self, id: &str, bucket: &str, key: &str) -> S3Result<UnfinishedUpload> {
        let upload = self.memory.upload(id, bucket, key)?;
        if self.root.join(format!(".upload-{id}.json")).exists() {
            return Ok(upload);
        }
        self.memory.forget(id);
        self.memory.upload(id, bucket, key)
    }

    /// True for the first try of the part that is refused on purpose.
    fn hiccups(&self, key: &str, number: i32) -> bool {
        let chosen = self.injected_fault.as_ref().is_some_and(|fault| fault.part == number && fault.key == key);
        chosen && !self.fault_injected.swap(true, Ordering::Relaxed)
    }

    async fn head(&self, bucket: &str, key: String) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = HeadObjectInput { bucket: bucket.to_owned(), key, ..HeadObjectInput::default() };
        self.files.head_object(plain(input)).await
    }
}

/// States the encryption of an object in an answer: the outputs have the same fields and no trait.
macro_rules! encrypted {
    ($output:expr, $encryption:expr) => {
        let encryption = $encryption;
        $output.server_side_encryption = Some(encryption.sse());
        $output.ssekms_key_id = encryption.key;
        $output.bucket_key_enabled = encryption.bucket_key;
    };
}

#[async_trait]
impl S3 for Objects {
    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = &mut request.input;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        fits(&bucket, &key)?;
        let sse = input.server_side_encryption.as_ref();
        let encryption = self.encryption(&bucket, sse, input.ssekms_key_id.as_ref(), input.bucket_key_enabled)?;
        let (body, witness) = body::checked(input.body.take(), input.checksum_crc64nvme.clone())?;
        input.body = Some(body);
        // A folder has one storage class only.
        input.storage_class = None;
        let mut response = self.files.put_object(anonymous(request)).await.map_err(|e| noted(witness.explain(e)))?;
        self.memory.remember(&bucket, &key, &encryption).await?;
        let output = &mut response.output;
        output.checksum_crc64nvme = Some(crc_text(witness.seen().crc));
        output.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
        encrypted!(output, encryption);
        Ok(response)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = &request.input;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        fits(&bucket, &key)?;
        let sse = input.server_side_encryption.as_ref();
        let encryption = self.encryption(&bucket, sse, input.ssekms_key_id.as_ref(), input.bucket_key_enabled)?;
        let (algorithm, kind) = (input.checksum_algorithm.clone(), input.checksum_type.clone());
        let mut response = self.files.create_multipart_upload(anonymous(request)).await?;
        let output = &mut response.output;
        output.checksum_algorithm = algorithm;
        output.checksum_type = kind;
        encrypted!(output, encryption.clone());
        let upload = UnfinishedUpload { bucket, key, encryption, parts: std::collections::BTreeMap::new(), sent: 0 };
        self.memory.begin(output.upload_id.clone().unwrap_or_default(), upload);
        Ok(response)
    }

    async fn upload_part(&self, mut request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = &mut request.input;
        let (id, number) = (input.upload_id.clone(), input.part_number);
        let upload = self.upload(&id, &input.bucket, &input.key)?;
        self.memory.part_sent(&id);
        if self.hiccups(&input.key, number) {
            body::drained(input.body.take()).await;
            return Err(s3_error!(SlowDown, "Please reduce your request rate."));
        }
        let (body, witness) = body::checked(input.body.take(), input.checksum_crc64nvme.clone())?;
        input.body = Some(body);
        let mut response = self.files.upload_part(anonymous(request)).await.map_err(|e| noted(witness.explain(e)))?;
        let seen = witness.seen();
        self.memory.part_kept(&id, number, seen);
        let output = &mut response.output;
        output.checksum_crc64nvme = Some(crc_text(seen.crc));
        encrypted!(output, upload.encryption);
        Ok(response)
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = &request.input;
        let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id.clone());
        let upload = self.upload(&id, &bucket, &key)?;
        let crc = assembled(input, &upload)?;
        let mut response = self.files.complete_multipart_upload(anonymous(request)).await.map_err(noted)?;
        // The store behind has done its work already and only answers late; headers must be known at once.
        if let Some(future) = response.output.future.take() {
            response.output = future.await?;
        }
        self.memory.remember(&bucket, &key, &upload.encryption).await?;
        self.memory.completed(&id);
        let output = &mut response.output;
        output.checksum_crc64nvme = Some(crc_text(crc));
        output.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
        encrypted!(output, upload.encryption);
        Ok(response)
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let bucket = request.input.bucket.clone();
        let mut response = self.files.list_objects_v2(request).await?;
        for object in response.output.contents.iter_mut().flatten() {
            let key = object.key.clone().unwrap_or_default();
            object.e_tag = self.head(&bucket, key).await.ok().and_then(|head| head.output.e_tag);
        }
        Ok(response)
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        self.files.list_objects(request).await
    }

    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(request).await
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let mut response = self.files.head_object(request).await?;
        let encryption = self.memory.encryption(&bucket, &key).await;
        encrypted!(response.output, encryption);
        Ok(response)
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let mut response = self.files.get_object(request).await?;
        let encryption = self.memory.encryption(&bucket, &key).await;
        encrypted!(response.output, encryption);
        Ok(response)
    }

    /// `us-east-1` is the one region S3 gives no name.
    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        let region = self.customer(&request.input.bucket)?.region.clone();
        let named = (region != "us-east-1").then(|| BucketLocationConstraint::from(region));
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint: named }))
    }
}

/// Says why the store behind failed: its answer can't.
fn noted(error: S3Error) -> S3Error {
    if *error.code() == S3ErrorCode::InternalError {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        tracing::warn!(
            event = "dev_object_not_stored",
            cause,
            next = "the upload fails, and its job is retried",
            remedy = "check the free space of the data directory",
            "the embedded S3 can't store an object"
        );
    }
    error
}

/// The store behind ties an upload to the key id that began it; a renewed session has another one.
fn anonymous<T>(mut request: S3Request<T>) -> S3Request<T> {
    request.credentials = None;
    request
}

fn plain<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: http::Method::GET,
        uri: http::Uri::default(),
        headers: http::HeaderMap::default(),
        extensions: http::Extensions::default(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}
