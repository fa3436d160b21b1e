use serde_json::{Value, json};

use super::*;
use crate::domain::destination::raw::RawDestination;
use crate::domain::job::lease::CONTENT_TYPE;
use crate::worker::sample;

fn decoder(inline: InlinePolicy) -> Decoder {
    let guarded =
        Destination { publishers: vec!["billing".to_owned()], ..sample::destination("guarded", "123456789012") };
    let all = [sample::destination("acme", "123456789012"), guarded];
    let all: Destinations = all.into_iter().map(|one| (one.id.clone(), Arc::new(one))).collect();
    let (_, destinations) = watch::channel(Arc::new(all));
    Decoder::new(destinations, inline)
}

fn open() -> InlinePolicy {
    InlinePolicy { enabled: true, external_id_required: false, ..InlinePolicy::default() }
}

fn delivery(key: &str, destination: &Value) -> Delivery {
    let source = json!({"url": "https://example.com/a"});
    let job = json!({"version": 1, "id": "a", "source": source, "destination": destination, "key": "a"});
    let routing_key = key.to_owned();
    Delivery { routing_key, origin: DeliveryOrigin::Producer, ..sample::delivery(job.to_string()) }
}

fn inline(id: &str, tenant: &str) -> Value {
    let auth = json!({"method": "iam_role", "role_arn": "arn:aws:iam::123456789012:role/r"});
    json!({"id": id, "bucket": "bucket", "region": "eu-central-1", "auth": auth, "tenant": tenant})
}

fn rejected(delivery: &Delivery) -> Rejection {
    *decoder(open()).decode(delivery).unwrap_err()
}

#[test]
fn the_routing_key_ends_in_the_destination() {
    assert!(decoder(open()).decode(&delivery("job.scheduled.acme", &json!("acme"))).is_ok());
    assert!(decoder(open()).decode(&delivery("job.backfill.x", &inline("x", "t"))).is_ok());
    for (key, destination, addressed) in [
        ("job.scheduled.acme", json!("guarded"), Some("acme")),
        ("job.scheduled.mine", inline("theirs", "t"), Some("mine")),
        ("job.scheduled._direct", json!("acme"), None),
        ("job.scheduled.acme.x", json!("acme"), Some("x")),
    ] {
        let rejection = rejected(&delivery(key, &destination));
        assert!(rejection.failure.message.starts_with("routing_key: "), "{}", rejection.failure);
        assert_eq!(rejection.failure.reason, Reason::InvalidJob);
        assert_eq!(rejection.destination.as_ref().map(DestinationId::as_str), addressed, "whose outcome it is");
        assert_eq!(rejection.event_identity, addressed.unwrap_or_default());
    }
    let handed_over = Delivery { lane: Lane::Continued, ..delivery("job.scheduled._direct", &json!("acme")) };
    assert!(decoder(open()).decode(&handed_over).is_ok(), "copies keep the key that they had");
}

#[test]
fn a_destination_takes_jobs_of_its_publishers_alone() {
    let of = |publisher: &str, destination: &Value, id: &str| Delivery {
        publisher: publisher.to_owned(),
        ..delivery(&format!("job.scheduled.{id}"), destination)
    };
    assert!(decoder(open()).decode(&of("billing", &json!("guarded"), "guarded")).is_ok());
    assert!(decoder(open()).decode(&of("", &json!("acme"), "acme")).is_ok(), "no list: everybody");
    let broken = json!({"id": "guarded"});
    for (publisher, destination) in [("", json!("guarded")), ("other", json!("guarded")), ("other", broken)] {
        let rejection = rejected(&of(publisher, &destination, "guarded"));
        assert_eq!(rejection.failure.reason, Reason::DestinationForbidden, "{}", rejection.failure);
        assert!(rejection.failure.message.contains("destinations.guarded.publishers"), "{}", rejection.failure);
        assert_eq!(rejection.event_identity, format!("guarded\n{publisher}"), "never the id of a real outcome");
    }
}

#[test]
fn the_rules_for_inline_destinations_hold() {
    let rejection =
        *decoder(InlinePolicy::default()).decode(&delivery("job.scheduled.x", &inline("x", "t"))).unwrap_err();
    assert_eq!(rejection.failure.reason, Reason::DestinationForbidden);
    assert!(rejection.failure.message.starts_with("destination: came with the job"), "{}", rejection.failure);
    let taken = rejected(&delivery("job.scheduled.acme", &inline("acme", "t")));
    assert_eq!(taken.failure.reason, Reason::InvalidJob);
    assert_ne!(taken.event_identity, "acme", "nor does it report failures of the configured one");
}

#[test]
fn tenants_that_share_an_id_get_destinations_of_their_own() {
    let identity = |tenant: &str| {
        let decoded = decoder(open()).decode(&delivery("job.scheduled.x", &inline("x", tenant))).unwrap();
        decoded.destination.identity.clone()
    };
    assert_ne!(identity("one"), identity("two"));
    assert_eq!(identity("one"), identity("one"));
}

#[test]
fn a_lease_counts_where_workers_wrote_it() {
    let plain = delivery("job.scheduled.acme", &json!("acme"));
    let lease = Lease { body: plain.body.clone(), content_type: None, lane: Lane::Scheduled, checkpoint: None };
    let leased = |origin: DeliveryOrigin| Delivery {
        body: lease.encode().unwrap(),
        properties: Properties { content_type: Some(CONTENT_TYPE.to_owned()), ..Properties::default() },
        origin,
        ..delivery("job.scheduled.acme", &json!("acme"))
    };
    assert!(decoder(open()).decode(&leased(DeliveryOrigin::Worker)).unwrap().lease.is_some());
    assert!(decoder(open()).decode(&leased(DeliveryOrigin::Unknown)).is_ok());
    let rejection = rejected(&leased(DeliveryOrigin::Producer));
    assert!(rejection.failure.message.starts_with("content_type: "), "{}", rejection.failure);
}

#[test]
fn publishers_do_not_come_in_jobs() {
    let raw = RawDestination { publishers: Some(vec!["me".to_owned()]), ..RawDestination::default() };
    let raw = RawDestination { id: Some("x".to_owned()), ..raw };
    assert_eq!(raw.validate_inline().unwrap_err()[0].field, "publishers");
}
