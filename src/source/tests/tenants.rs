//! Files and objects that are staged for one tenant are read for no other one.

use std::os::unix::fs::symlink;

use super::*;
use crate::source::s3::tests::client;

const ACME: SourceReader<'_> = SourceReader::Configured(Some("acme"));
const BETA: SourceReader<'_> = SourceReader::Configured(Some("beta"));

/// Two tenants with a file each, and every way from one to the other.
fn staged() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for tenant in ["acme", "beta", "acme2"] {
        std::fs::create_dir_all(at(tenant).join("out/sub")).unwrap();
        std::fs::write(at(tenant).join("out/f"), TEXT).unwrap();
    }
    symlink("../../beta/out/f", at("acme/out/link")).unwrap();
    symlink("../../beta/out", at("acme/out/folder")).unwrap();
    std::fs::create_dir(at("gamma")).unwrap();
    symlink("../beta/out", at("gamma/out")).unwrap();
    symlink("beta", at("delta")).unwrap();
    root
}

fn in_root(root: &Path) -> Sources {
    sources(SourceConfig { file_root: Some(folder(root, "/{tenant}/out")), ..config() })
}

#[tokio::test]
async fn a_file_of_another_tenant_is_forbidden_by_every_path() {
    let root = staged();
    let sources = in_root(root.path());
    let file = |path: &str| job(Location::File(root.path().join(path)));
    assert!(sources.open(&file("acme/out/f"), ACME).await.is_ok());
    for path in [
        "beta/out/f",
        "acme2/out/f",
        "acme/f",
        "acme/out",
        "acme/out/../../beta/out/f",
        "acme/out/link",
        "acme/out/folder/f",
        "x",
    ] {
        let refused = sources.open(&file(path), ACME).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SourceForbidden, "{path}: {}", refused.message);
    }
    // The tenant's own folder is a link, or its way there.
    for (tenant, path) in [("gamma", "gamma/out/f"), ("delta", "delta/out/f")] {
        let refused = sources.open(&file(path), SourceReader::Configured(Some(tenant))).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SourceForbidden, "{path}: {}", refused.message);
    }
}

#[tokio::test]
async fn without_a_tenant_that_counts_nothing_is_read_from_a_bound_place() {
    let root = staged();
    let sources = in_root(root.path());
    let file = job(Location::File(root.path().join("acme/out/f")));
    for (reader, why) in [
        (SourceReader::Inline, "the destination came with the job"),
        (SourceReader::Configured(None), "the key \"tenant\" of the destination, which is not set"),
        (SourceReader::Configured(Some("../acme")), "that is a folder's name"),
        (SourceReader::Configured(Some("")), "that is a folder's name"),
    ] {
        let refused = sources.open(&file, reader).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SourceForbidden);
        assert!(
            refused.message.starts_with("source.url: source.file_root ") && refused.message.contains(why),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_file_of_another_tenant_is_not_resumed_either() {
    let root = staged();
    let sources = in_root(root.path());
    let file = job(Location::File(root.path().join("beta/out/f")));
    let opened = sources.open(&file, BETA).await.unwrap();
    let mark = SourceMark { validator: opened.validator.unwrap(), length: opened.length };
    assert!(sources.open_at(&file, BETA, &mark, 4).await.unwrap().is_some());
    assert_eq!(sources.open_at(&file, ACME, &mark, 4).await.unwrap_err().reason, Reason::SourceForbidden);
}

#[tokio::test]
async fn an_object_of_another_tenant_is_forbidden_without_a_request() {
    let headers = [LENGTH, ("etag", "\"v1\"")];
    let origin = ScriptedOrigin::start(move |_, _| response(200, &headers, TEXT)).await;
    let places = [("staging", "t/{tenant}", Some("999999999999")), ("open", "shared", None)];
    let s3 = places.map(|(bucket, prefix, owner)| StagingPlace::parse(bucket, prefix, owner).unwrap()).to_vec();
    let config = SourceConfig { s3, ..config() };
    let sources = Sources::new(config, 0, Arc::new(Metrics::new(1)), Some(client(&origin))).unwrap();
    let object = |url: &str| job(Location::parse(url).unwrap());
    let mark = mark("\"v1\"", Some(10));
    for (url, reader) in [
        ("s3://staging/t/beta/f", ACME),
        ("s3://staging/t/acme2/f", ACME),
        ("s3://staging/t/acme", ACME),
        ("s3://staging/f", ACME),
        ("s3://staging/t/acme/f", SourceReader::Inline),
        ("s3://staging/t/acme/f", SourceReader::Configured(None)),
        ("s3://staging/t/acme/f", SourceReader::Configured(Some("acme/.."))),
        ("s3://open/f", ACME),
        ("s3://open/shared2/f", ACME),
        ("s3://other/f", ACME),
    ] {
        let refused = sources.open(&object(url), reader).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SourceForbidden, "{url}: {}", refused.message);
        let refused = sources.open_at(&object(url), reader, &mark, 4).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SourceForbidden, "{url}: {}", refused.message);
    }
    assert!(origin.heads().is_empty(), "{:?}", origin.heads());
    for (url, reader) in [("s3://staging/t/acme/f", ACME), ("s3://open/shared/f", SourceReader::Inline)] {
        assert_eq!(sources.open(&object(url), reader).await.unwrap().length, Some(10), "{url}");
    }
    let heads = origin.heads();
    assert!(heads[0].contains("x-amz-expected-bucket-owner: 999999999999"), "{}", heads[0]);
    assert!(!heads[1].contains("x-amz-expected-bucket-owner"), "{}", heads[1]);
}
