use super::*;

fn folder(text: &str) -> TenantFolder {
    TenantFolder::parse(text).unwrap()
}

#[test]
fn the_tenant_of_a_configured_destination_fills_the_folder() {
    let acme = SourceReader::Configured(Some("acme.1_x-Y"));
    assert_eq!(folder("/exports/{tenant}/out").filled(acme).unwrap(), "/exports/acme.1_x-Y/out");
    assert_eq!(folder("{tenant}/in/{tenant}/").filled(acme).unwrap(), "acme.1_x-Y/in/acme.1_x-Y/");
    assert_eq!(folder("/exports/{tenant}/out").shared(), "/exports/");
    for reader in [acme, SourceReader::Inline, SourceReader::Configured(None)] {
        assert_eq!(folder("/exports").filled(reader).unwrap(), "/exports");
    }
}

#[test]
fn nobody_else_has_a_folder() {
    let filled = |reader| folder("/exports/{tenant}").filled(reader);
    assert_eq!(filled(SourceReader::Inline), Err(NoTenant::Inline));
    assert_eq!(filled(SourceReader::Configured(None)), Err(NoTenant::Missing));
    let long = "a".repeat(129);
    for tenant in ["", ".", "..", ".a", "-a", "a/b", "a/../b", "a\\b", "a b", "a\0", "{tenant}", "\u{e4}", "a*", &long]
    {
        assert_eq!(filled(SourceReader::Configured(Some(tenant))), Err(NoTenant::Invalid), "{tenant}");
    }
}

#[test]
fn a_placeholder_is_a_whole_segment() {
    for text in ["/a/{tennant}", "/a/x{tenant}", "/a/{tenant}x", "/a/{tenant}{tenant}", "/a/{}", "/a/}"] {
        assert!(TenantFolder::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_place_may_not_undo_the_binding_of_another() {
    let place = |bucket, prefix| StagingPlace::parse(bucket, prefix, None).unwrap();
    let tenants = place("staging", "t/{tenant}/");
    for (prefix, undoes) in [
        ("", true),
        ("t", true),
        ("t/shared/", true),
        ("{tenant}", true),
        ("t/x/{tenant}", true),
        ("other", false),
        ("t2/", false),
        ("t/{tenant}/in", false),
    ] {
        let other = place("staging", prefix);
        assert_eq!((tenants.undoes(&other), other.undoes(&tenants)), (undoes, undoes), "{prefix}");
    }
    assert!(!tenants.undoes(&place("other", "")));
    assert!(!place("staging", "").undoes(&place("staging", "a")));
}
