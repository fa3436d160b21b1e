//! One suite of conformance, run on each store: what consign uses of S3 and STS, byte for byte.
//!
//! moto, ministack and s3s run in every test run. The others are asked for:
//! `CONSIGN_TEST_STORES=ceph,garage,localstack tests/run stores` installs and starts them. `account` is a
//! bucket of your own, anywhere, named by environment variables (see `ground::account`). What
//! a store does not have is not in its list; deploy/docs/stores.md has the same lists.

mod expiry;
mod ground;
mod mixed;
mod suite;
mod table;

/// The tests of a store, as a module of its name. `asked` ones run with `tests/run stores`.
macro_rules! conformance {
    ($store:ident: $($test:ident)+) => {
        mod $store {
            pub const TESTS: &[&str] = &[$(stringify!($test)),+];

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                Box::pin(super::suite::$test(super::ground::$store().await)).await;
            })+
        }
    };
    (asked $store:ident: $($test:ident)+) => {
        mod $store {
            pub const TESTS: &[&str] = &[$(stringify!($test)),+];

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "runs where it is asked for: CONSIGN_TEST_STORES=... tests/run stores"]
            async fn $test() {
                Box::pin(super::suite::$test(super::ground::$store().await)).await;
            })+
        }
    };
}

conformance! { moto: check_passes small_and_empty_objects objects_in_parts odd_keys gzip encryption_with_a_key
existing_objects an_upload_resumes a_lost_permission_is_named one_hundred_mixed_jobs }
conformance! { ministack: check_passes small_and_empty_objects objects_in_parts odd_keys gzip encryption_with_a_key
existing_objects an_upload_resumes an_expired_session_is_renewed a_lost_permission_is_named one_hundred_mixed_jobs }
#[cfg(feature = "dev")]
conformance! { s3s: check_passes small_and_empty_objects objects_in_parts odd_keys gzip encryption_with_a_key
existing_objects an_upload_resumes a_lost_permission_is_named one_hundred_mixed_jobs }
conformance! { asked ceph: check_passes small_and_empty_objects objects_in_parts odd_keys gzip encryption_with_a_key
existing_objects an_upload_resumes an_expired_session_is_renewed a_lost_permission_is_named one_hundred_mixed_jobs }
conformance! { asked garage: check_passes small_and_empty_objects objects_in_parts odd_keys gzip
an_ignored_encryption_is_named existing_objects an_upload_resumes a_lost_permission_is_named one_hundred_mixed_jobs }
conformance! { asked localstack: check_passes small_and_empty_objects objects_in_parts odd_keys gzip
existing_objects an_upload_resumes one_hundred_mixed_jobs }
conformance! { asked account: check_passes small_and_empty_objects objects_in_parts odd_keys gzip encryption_with_a_key
existing_objects an_upload_resumes one_hundred_mixed_jobs }
