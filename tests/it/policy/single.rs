//! Each statement allows its own action and no other, as a server that enforces IAM sees it.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Tag, Tagging};
use consign::domain::destination::raw::{RawAuth, RawDestination, RawMethod};
use consign::domain::destination::{Destination, DestinationId};
use consign::domain::policy::{Permission, TEST_OBJECT, document, single};

use crate::testbed::ministack::{Account, Ministack, REGION};
use crate::testbed::moto::{Key, s3_client};
use crate::testbed::unique;

const S3: [Permission; 6] = [
    Permission::PutObject,
    Permission::PutObjectTagging,
    Permission::GetBucketLocation,
    Permission::ListBucket,
    Permission::AbortMultipartUpload,
    Permission::DeleteObject,
];

fn destination(bucket: &str) -> Destination {
    let auth = RawAuth {
        method: RawMethod::AccessKey,
        access_key_id: Some("AKIA1234567890ABCDEF".into()),
        secret_access_key: Some("secret".to_owned().into()),
        ..RawAuth::default()
    };
    let raw = RawDestination {
        bucket: bucket.into(),
        region: REGION.into(),
        prefix: "in/".into(),
        auth,
        ..RawDestination::default()
    };
    raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
}

struct World {
    url: String,
    account: Account,
    bucket: String,
}

impl World {
    async fn new() -> Self {
        let stack = Ministack::shared();
        let (account, bucket) = (stack.account(), unique("single"));
        account.make_bucket(&bucket).await;
        Self { url: stack.url, account, bucket }
    }

    async fn user_with(&self, permission: Permission) -> Key {
        let policy = document(&[single(permission, &destination(&self.bucket))]);
        self.account.make_user(&unique("user"), &policy).await.1
    }

    async fn put(&self, key: &str) {
        let body = ByteStream::from_static(b"x");
        self.account.s3.put_object().bucket(&self.bucket).key(key).body(body).send().await.unwrap();
    }

    /// Tries what a permission is for, below `folder`; true if it was allowed.
    async fn allowed(&self, key: &Key, permission: Permission, folder: &str) -> bool {
        let (s3, bucket) = (s3_client(&self.url, key, REGION), self.bucket.as_str());
        let object = format!("{folder}{TEST_OBJECT}");
        self.put(&object).await;
        match permission {
            Permission::PutObject => s3.put_object().bucket(bucket).key(&object).send().await.is_ok(),
            Permission::PutObjectTagging => {
                let tag = Tag::builder().key("a").value("b").build().unwrap();
                let tags = Tagging::builder().tag_set(tag).build().unwrap();
                s3.put_object_tagging().bucket(bucket).key(&object).tagging(tags).send().await.is_ok()
            }
            Permission::GetBucketLocation => s3.get_bucket_location().bucket(bucket).send().await.is_ok(),
            Permission::ListBucket => s3.list_objects_v2().bucket(bucket).prefix(folder).send().await.is_ok(),
            Permission::AbortMultipartUpload => {
                let open = self.account.s3.create_multipart_upload().bucket(bucket).key(&object).send().await.unwrap();
                let id = open.upload_id.unwrap();
                s3.abort_multipart_upload().bucket(bucket).key(&object).upload_id(id).send().await.is_ok()
            }
            Permission::DeleteObject => s3.delete_object().bucket(bucket).key(&object).send().await.is_ok(),
            Permission::KmsGenerateDataKey | Permission::KmsDecrypt => unreachable!("no server enforces it"),
        }
    }
}

#[tokio::test]
async fn each_statement_allows_its_own_action_alone() {
    let world = World::new().await;
    for granted in S3 {
        let key = world.user_with(granted).await;
        for tried in S3 {
            let allowed = world.allowed(&key, tried, "in/").await;
            assert_eq!(allowed, tried == granted, "{tried:?} with the statement for {granted:?}");
        }
    }
}

#[tokio::test]
async fn no_statement_reaches_beyond_the_prefix() {
    let world = World::new().await;
    // The region is the whole bucket's.
    for granted in S3.into_iter().filter(|permission| *permission != Permission::GetBucketLocation) {
        let key = world.user_with(granted).await;
        for folder in ["out/", "in", "", "in-too/"] {
            assert!(!world.allowed(&key, granted, folder).await, "{granted:?} in {folder:?}");
        }
    }
}

#[tokio::test]
async fn the_statement_to_delete_is_for_the_test_file_alone() {
    let world = World::new().await;
    let key = world.user_with(Permission::DeleteObject).await;
    let s3 = s3_client(&world.url, &key, REGION);
    for other in ["in/report.csv", "in/consign-connection-test-2", "in/deep/consign-connection-test"] {
        world.put(other).await;
        assert!(s3.delete_object().bucket(&world.bucket).key(other).send().await.is_err(), "{other}");
    }
    assert!(world.allowed(&key, Permission::DeleteObject, "in/").await);
    assert_eq!(world.account.keys(&world.bucket).await.len(), 3);
}
