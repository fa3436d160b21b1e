//! Validation of `[source]`.

use std::path::Path;

use super::findings::Findings;
use crate::config::raw::{RawSourceConfig, RawStagingPlace};
use crate::config::sections::SourceConfig;
use crate::domain::destination::Invalid;
use crate::domain::staging::{StagingPlace, TenantFolder};

pub(super) fn source(raw: RawSourceConfig, findings: &mut Findings) -> SourceConfig {
    for scheme in &raw.schemes {
        match scheme.as_str() {
            "https" | "file" | "s3" => {}
            "http" => findings
                .add("source.schemes", "\"http\" is not listed here; remove it and set source.allow_http = true"),
            _ => findings.add("source.schemes", "has an unknown scheme; give \"https\", \"file\" or \"s3\""),
        }
    }
    let problem = "is 0, so nothing could be read; remove it for no limit";
    findings.require(raw.max_bytes != Some(0), "source.max_bytes", problem);
    SourceConfig {
        file_root: raw.file_root.as_deref().and_then(|root| file_root(root, findings)),
        s3: staging_places(&raw.s3, findings),
        allow_networks: findings.networks("source.allow_networks", &raw.allow_networks),
        schemes: raw.schemes,
        allow_http: raw.allow_http,
        allow_private_networks: raw.allow_private_networks,
        allow_unproven_length: raw.allow_unproven_length,
        max_bytes: raw.max_bytes,
    }
}

fn file_root(text: &str, findings: &mut Findings) -> Option<TenantFolder> {
    const KEY: &str = "source.file_root";
    let root = findings.parsed(KEY, Some(TenantFolder::parse(text)))?;
    let shared = Path::new(root.shared());
    let above = shared.components().any(|part| part == std::path::Component::ParentDir);
    if !shared.is_absolute() {
        findings.add(KEY, "is relative; give an absolute path");
    } else if above || root.is_bound() && text.split('/').any(|segment| matches!(segment, "." | "..")) {
        findings.add(KEY, "has \".\" or \"..\" segments; give the path itself");
    } else if !shared.is_dir() {
        let what =
            if root.is_bound() { "is not below a directory (the part before {tenant})" } else { "is not a directory" };
        findings.add(KEY, format!("{what}; create it or remove this key"));
    }
    Some(root)
}

fn staging_places(raw: &[RawStagingPlace], findings: &mut Findings) -> Vec<StagingPlace> {
    const KEY: &str = "source.s3";
    let mut places: Vec<StagingPlace> = Vec::new();
    for (number, place) in (1..).zip(raw) {
        match StagingPlace::parse(&place.bucket, &place.prefix, place.owner.as_deref()) {
            Err(Invalid { field, problem }) => findings.add(KEY, format!("place {number}: {field}: {problem}")),
            Ok(place) => {
                if let Some(other) = places.iter().position(|other| place.undoes(other)) {
                    let problem = format!(
                        "place {number} overlaps with place {}, so a tenant could read what is staged for others; give every \
                         {{tenant}} a folder or a bucket of its own",
                        other + 1
                    );
                    findings.add(KEY, problem);
                }
                places.push(place);
            }
        }
    }
    places
}
