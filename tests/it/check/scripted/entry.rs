//! Our own identity, and roles that do not let us in as they should.

use serde_json::json;

use super::{CUSTOMER, all};
use crate::check::table::{Act, Setup};
use crate::check::{EXTERNAL_ID, by_key, by_role};
use crate::fixture::REGION;
use crate::testbed::moto::Key;
use crate::testbed::scripted::Effect;

pub const THE_WORKERS_OWN_PROBLEMS: &[Setup] = &[
    Setup {
        code: "identity_absent",
        shows: "identity: failed",
        exit: 77,
        to: by_role,
        broken: |hands| {
            hands.site.without_identity();
        },
        says: &["this command found no AWS credentials in its shell", "no action is needed from the customer"],
        mended: |hands| {
            hands.site.identity(&Key { id: "AKIAPLATFORM00000001".into(), secret: "any".into() });
        },
    },
    Setup {
        code: "identity_refused",
        shows: "identity: failed",
        exit: 77,
        to: by_role,
        broken: |hands| {
            let effect =
                Effect::Error(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
            hands.s3.on("GetCallerIdentity").before(effect);
        },
        says: &["refuses the credentials of this command", "renew the AWS credentials of the shell"],
        mended: CUSTOMER,
    },
    Setup {
        code: "identity_may_not_assume",
        shows: "assume_role: failed",
        exit: 77,
        to: by_role,
        broken: |hands| {
            let message = "User: arn:aws:iam::999999999999:user/platform is not authorized to perform: sts:AssumeRole on resource: \
                           arn:aws:iam::111111111111:role/consign because no identity-based policy allows the sts:AssumeRole action";
            hands.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", message));
        },
        says: &["the identity of this command (the AWS credentials of its shell)", "allow sts:AssumeRole"],
        mended: CUSTOMER,
    },
    Setup {
        code: "identity_may_not_tag",
        shows: "assume_role: failed",
        exit: 77,
        to: by_role,
        broken: |hands| {
            let message = "User: arn:aws:sts::999999999999:assumed-role/consign/eks is not authorized to perform: sts:TagSession on \
                           resource: arn:aws:iam::111111111111:role/consign";
            hands.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", message));
        },
        says: &["EKS Pod Identity", "--disable-session-tags", "no action is needed from the customer"],
        mended: CUSTOMER,
    },
    Setup {
        code: "identity_unknown_in_region",
        shows: "identity: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            // Without a region of our own, STS of the destination's region is asked.
            hands.site.unset("aws.region");
            let effect =
                Effect::Error(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
            hands.s3.on("GetCallerIdentity").region(REGION).before(effect);
        },
        says: &["opt-in region", "aws.region", REGION, "us-east-1"],
        mended: |hands| {
            hands.site.set("aws.region", "us-east-1");
        },
    },
    Setup {
        code: "role_auth_off",
        shows: "identity: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            hands.site.set("session.role_auth", false);
        },
        says: &["session.role_auth", "use an access key"],
        mended: |hands| {
            hands.site.set("session.role_auth", true);
        },
    },
    Setup {
        code: "clock_skew",
        shows: "identity: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = "Signature expired: 20261122T000000Z is now earlier than 20261123T000000Z";
            hands.s3.on("GetCallerIdentity").before(Effect::Error(403, "SignatureDoesNotMatch", message));
        },
        says: &["set the clock"],
        mended: CUSTOMER,
    },
    Setup {
        code: "clock_skew",
        shows: "access_key: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let message = "Signature not yet current: 20261124T000000Z is still later than 20261123T000000Z";
            hands.s3.on("GetCallerIdentity").before(Effect::Error(403, "SignatureDoesNotMatch", message));
        },
        says: &["set the clock"],
        mended: CUSTOMER,
    },
    Setup {
        code: "clock_skew",
        shows: "region: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = "The difference between the request time and the current time is too large.";
            hands.s3.on("GetBucketLocation").before(Effect::Error(403, "RequestTimeTooSkewed", message));
        },
        says: &["15 minutes"],
        mended: CUSTOMER,
    },
    Setup {
        code: "sts_unavailable",
        shows: "assume_role: failed",
        exit: 69,
        to: by_role,
        broken: |hands| hands.s3.on("AssumeRole").before(Effect::Error(503, "ServiceUnavailable", "busy")),
        says: &["STS answered 503"],
        mended: CUSTOMER,
    },
    Setup {
        code: "s3_unavailable",
        shows: "region: failed",
        exit: 69,
        to: by_role,
        broken: |hands| {
            hands.s3.on("GetBucketLocation").before(Effect::Error(503, "SlowDown", "Please reduce your request rate."));
        },
        says: &["test again"],
        mended: CUSTOMER,
    },
    Setup {
        code: "s3_unreachable",
        shows: "region: failed",
        exit: 69,
        to: by_role,
        broken: |hands| {
            hands.site.set("aws.s3_endpoint_url", "http://127.0.0.1:1");
        },
        says: &["aws.s3_endpoint_url"],
        mended: |hands| {
            let url = hands.s3.url.clone();
            hands.site.set("aws.s3_endpoint_url", url);
        },
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workers_own_problems() {
    all(THE_WORKERS_OWN_PROBLEMS).await;
}

const TRUSTED: Act = |hands| {
    let statement = &hands.remedy["statement"]["Statement"][0];
    assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::999999999999:user/AKIAPLATFORM00000001", "{statement:#}");
    let id = statement["Condition"]["StringEquals"]["sts:ExternalId"].as_str().expect("the external id to paste");
    hands.s3.trust(Some(id));
};
pub const ROLES_THAT_DO_NOT_LET_US_IN_AS_THEY_SHOULD: &[Setup] = &[
    Setup {
        code: "role_denied",
        shows: "assume_role: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.s3.trust(Some("another")),
        says: &["trust policy", "AKIAPLATFORM00000001", EXTERNAL_ID],
        mended: TRUSTED,
    },
    Setup {
        code: "role_not_found",
        shows: "assume_role: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.s3.on("AssumeRole").before(Effect::Error(404, "NoSuchEntity", "Role consign not found")),
        says: &["there is no role arn:aws:iam::111111111111:role/consign"],
        mended: CUSTOMER,
    },
    Setup {
        code: "role_explicit_deny",
        shows: "assume_role: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = "User: arn:aws:iam::999999999999:user/platform is not authorized to perform: sts:AssumeRole on resource: \
                           arn:aws:iam::111111111111:role/consign with an explicit deny in a service control policy";
            hands.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", message));
        },
        says: &["Deny of sts:AssumeRole"],
        mended: CUSTOMER,
    },
    Setup {
        code: "role_request_refused",
        shows: "assume_role: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let effect = Effect::Error(400, "PackedPolicyTooLarge", "Serialized token too large for session");
            hands.s3.on("AssumeRole").before(effect);
        },
        says: &["shorten the prefix", "session.policy"],
        mended: CUSTOMER,
    },
    Setup {
        code: "other_partition",
        shows: "assume_role: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            hands.to["auth"]["role_arn"] = json!("arn:aws-us-gov:iam::111111111111:role/consign");
        },
        says: &["aws-us-gov", "this worker's identity belongs to the partition aws", "use an access key"],
        mended: |hands| *hands.to = by_role(),
    },
    Setup {
        code: "sts_region_disabled",
        shows: "assume_role: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = "STS is not activated in this region for account:111111111111.";
            hands.s3.on("AssumeRole").before(Effect::Error(403, "RegionDisabledException", message));
        },
        says: &["activate STS", REGION],
        mended: CUSTOMER,
    },
    Setup {
        code: "external_id_not_enforced",
        shows: "external_id: warning",
        exit: 0,
        to: by_role,
        broken: |hands| hands.s3.trust(None),
        says: &["without the external id", "trust policy"],
        mended: TRUSTED,
    },
    Setup {
        code: "external_id_absent",
        shows: "external_id: warning",
        exit: 0,
        to: || {
            let mut to = by_role();
            to["auth"].as_object_mut().unwrap().remove("external_id");
            to
        },
        broken: |hands| hands.s3.trust(None),
        says: &["auth.external_id"],
        mended: |hands| {
            hands.to["auth"]["external_id"] = json!(EXTERNAL_ID);
            hands.s3.trust(Some(EXTERNAL_ID));
        },
    },
    Setup {
        code: "session_refused",
        shows: "region: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            hands.s3.on("GetBucketLocation").before(Effect::Error(
                400,
                "ExpiredToken",
                "The provided token has expired.",
            ));
        },
        says: &["revokes older sessions"],
        mended: CUSTOMER,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_do_not_let_us_in_as_they_should() {
    all(ROLES_THAT_DO_NOT_LET_US_IN_AS_THEY_SHOULD).await;
}
