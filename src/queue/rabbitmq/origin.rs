//! Origin of a message: who published it, as the broker has verified it.
//!
//! The broker refuses a message whose `user_id` is not the login that publishes it. So every
//! message of a worker carries the workers' own login, and a producer can't forge that. Such a copy
//! also names, in a header, the user that published the job first: the header counts in a message
//! of the workers' login alone.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};

use super::fields::{retain_headers, short, text_of};
use crate::domain::headers::{CRASHES, ORIGINAL_ROUTING_KEY, PUBLISHER, is_of_lease};
use crate::domain::job::lease::Lease;
use crate::queue::DeliveryOrigin;

/// Content type of a job that names none.
const JSON: &str = "application/json";

/// Returns the origin of a message that was received with the login `us`, and its properties with
/// the verified publisher in the header [`PUBLISHER`]. `us` is `None` where the login is not known.
///
/// A producer's message keeps no header that only a worker writes about other messages: those of a
/// lease, the count of lost workers, and the routing key of a copy.
pub(super) fn verify(properties: BasicProperties, us: Option<&ShortString>) -> (DeliveryOrigin, BasicProperties) {
    let (origin, properties) = with_publisher(properties, us);
    let verified = match origin {
        DeliveryOrigin::Producer => retain_headers(&properties, |name| !is_written_by_workers(name)),
        DeliveryOrigin::Worker | DeliveryOrigin::Unknown => properties,
    };
    (origin, verified)
}

/// Returns the properties of a message that no producer may publish, with its verified publisher.
pub(super) fn trusted(properties: BasicProperties, us: Option<&ShortString>) -> BasicProperties {
    with_publisher(properties, us).1
}

fn with_publisher(properties: BasicProperties, us: Option<&ShortString>) -> (DeliveryOrigin, BasicProperties) {
    let user = properties.user_id().as_ref();
    let origin = match us {
        Some(_) if user == us => DeliveryOrigin::Worker,
        Some(_) => DeliveryOrigin::Producer,
        None => DeliveryOrigin::Unknown,
    };
    let publisher = match text_of(properties.headers().as_ref(), PUBLISHER) {
        Some(first) if origin == DeliveryOrigin::Worker => first,
        _ => user.map(ToString::to_string).unwrap_or_default(),
    };
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(PUBLISHER.into(), AMQPValue::LongString(publisher.into()));
    (origin, properties.with_headers(headers))
}

fn is_written_by_workers(name: &str) -> bool {
    is_of_lease(name) || [CRASHES, ORIGINAL_ROUTING_KEY].contains(&name)
}

/// Returns a message of a lane that producers publish to, as a producer may publish it: of a lease
/// only the job is left. The lease may be forged, or that of a worker with another login or of an
/// earlier version, and then the job must not be lost. It starts over.
pub(super) fn without_forged_lease(
    origin: DeliveryOrigin,
    properties: BasicProperties,
    body: Vec<u8>,
) -> (BasicProperties, Vec<u8>) {
    let lease = is_forged_lease(origin, &properties).then(|| Lease::decode(&body).ok()).flatten();
    let Some(Lease { body: job, content_type, .. }) = lease else { return (properties, body) };
    let content_type = content_type.unwrap_or_else(|| JSON.to_owned());
    // A longer one is none of a job's.
    let Ok(content_type) = short(&content_type) else { return (properties, body) };
    (properties.with_content_type(content_type), job.to_vec())
}

/// Returns true for a lease that no worker has published to its lane. A copy of it would look like
/// a worker's.
pub(super) fn is_forged_lease(origin: DeliveryOrigin, properties: &BasicProperties) -> bool {
    origin == DeliveryOrigin::Producer && Lease::is_type(properties.content_type().as_ref().map(ShortString::as_str))
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;
    use crate::domain::headers::{ATTEMPT, LEASE_EPOCH, LEASE_OWNER};
    use crate::domain::job::lease::CONTENT_TYPE;
    use crate::domain::lane::Lane;

    fn message(user: Option<&str>, headers: &[&str]) -> BasicProperties {
        let mut table = FieldTable::default();
        for name in headers {
            table.insert((*name).into(), AMQPValue::LongString("scheduler".into()));
        }
        let properties = BasicProperties::default().with_headers(table);
        user.map_or(properties.clone(), |user| properties.with_user_id(user.into()))
    }

    fn verified(user: Option<&str>, headers: &[&str], us: Option<&str>) -> (DeliveryOrigin, String, Vec<String>) {
        let (origin, properties) = verify(message(user, headers), us.map(Into::into).as_ref());
        let table = properties.headers().clone().unwrap();
        let names = table.inner().keys().map(ToString::to_string).filter(|name| name != PUBLISHER).collect();
        (origin, text_of(Some(&table), PUBLISHER).unwrap(), names)
    }

    #[test]
    fn only_a_copy_of_our_own_login_names_its_first_publisher() {
        for (user, headers, publisher, origin) in [
            (Some("us"), &[PUBLISHER][..], "scheduler", DeliveryOrigin::Worker),
            (Some("us"), &[], "us", DeliveryOrigin::Worker),
            (Some("them"), &[PUBLISHER], "them", DeliveryOrigin::Producer),
            (None, &[PUBLISHER], "", DeliveryOrigin::Producer),
        ] {
            let (found, named, _) = verified(user, headers, Some("us"));
            assert_eq!((found, named.as_str()), (origin, publisher), "{user:?} {headers:?}");
        }
        let (origin, publisher, _) = verified(Some("them"), &[PUBLISHER], None);
        assert_eq!((origin, publisher.as_str()), (DeliveryOrigin::Unknown, "them"), "a login that nobody knows");
    }

    #[test]
    fn a_producer_writes_no_header_about_other_messages() {
        let forged = [LEASE_EPOCH, LEASE_OWNER, CRASHES, ORIGINAL_ROUTING_KEY, ATTEMPT, "own"];
        assert_eq!(verified(Some("them"), &forged, Some("us")).2, ["own", ATTEMPT]);
        assert_eq!(verified(None, &forged, Some("us")).2, ["own", ATTEMPT]);
        assert_eq!(verified(Some("us"), &forged, Some("us")).2.len(), forged.len());
        assert_eq!(verified(None, &forged, None).2.len(), forged.len());
    }

    #[test]
    fn of_a_forged_lease_the_job_is_left() {
        let of = |origin, content_type: Option<&str>, encoded: Option<&[u8]>| {
            let content_type = content_type.map(str::to_owned);
            let lease =
                Lease { body: b"job".to_vec().into(), content_type, lane: Lane::Scheduled, checkpoint: None }.encode();
            let body = encoded.map_or_else(|| lease.unwrap().to_vec(), <[u8]>::to_vec);
            let properties = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
            let (properties, left) = without_forged_lease(origin, properties.with_message_id("a".into()), body.clone());
            assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("a"));
            let content_type = properties.content_type().as_ref().map(ToString::to_string).unwrap();
            (content_type, if left == body { "whole".to_owned() } else { String::from_utf8(left).unwrap() })
        };
        let (producer, compact) = (DeliveryOrigin::Producer, "application/vnd.consign.job.v1+bincode");
        assert_eq!(of(producer, None, None), (JSON.to_owned(), "job".to_owned()));
        assert_eq!(of(producer, Some(compact), None), (compact.to_owned(), "job".to_owned()));
        assert_eq!(of(producer, None, Some(b"broken")), (CONTENT_TYPE.to_owned(), "whole".to_owned()));
        for origin in [DeliveryOrigin::Worker, DeliveryOrigin::Unknown] {
            assert_eq!(of(origin, None, None), (CONTENT_TYPE.to_owned(), "whole".to_owned()));
        }
        let nested = of(producer, Some(CONTENT_TYPE), None);
        assert_eq!(nested, (CONTENT_TYPE.to_owned(), "job".to_owned()), "which is refused as a lease");
    }

    #[test]
    fn a_lease_of_a_producer_is_forged() {
        let lease = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
        assert!(is_forged_lease(DeliveryOrigin::Producer, &lease));
        assert!(!is_forged_lease(DeliveryOrigin::Worker, &lease) && !is_forged_lease(DeliveryOrigin::Unknown, &lease));
        assert!(!is_forged_lease(DeliveryOrigin::Producer, &BasicProperties::default()));
    }
}
