use super::*;
use crate::config::{AwsConfig, SessionConfig};
use crate::domain::destination::DestinationIdentity;
use crate::metrics::Metrics;
use crate::session::WorkerIdentity;

fn sessions(aws: AwsConfig) -> Sessions {
    let config = SessionConfig {
        refresh_before: Duration::from_mins(5),
        capacity: 10,
        denied_for: Duration::from_mins(1),
        role_auth: true,
        policy: crate::domain::destination::SessionPolicyMode::Full,
    };
    let identity = WorkerIdentity::fixed("AKIA", "secret", &region("eu-central-1"));
    Sessions::new(config, aws, identity, Arc::new(Metrics::new(1)))
}

fn region(name: &str) -> Region {
    Region::parse(name).unwrap()
}

fn role(partition: &str) -> RoleArn {
    RoleArn::parse(&format!("arn:{partition}:iam::123456789012:role/r")).unwrap()
}

#[test]
fn a_role_of_another_partition_than_region_or_identity_is_not_assumed() {
    let sessions = sessions(AwsConfig::default());
    let conflict = |partition, name| {
        let conflict = sessions.partition_conflict(&role(partition), &region(name))?;
        assert_eq!(conflict.reason, Reason::WrongRegion);
        Some(conflict.message)
    };
    assert_eq!(conflict("aws", "eu-west-1"), None);
    assert!(conflict("aws", "cn-north-1").unwrap().contains("cn-north-1 belongs to the partition aws-cn"));
    assert_eq!(conflict("aws-cn", "cn-north-1"), None, "who we are is not known yet");
    sessions.home.accepted_as("arn:aws:sts::999999999999:assumed-role/worker/i-1");
    assert!(conflict("aws-cn", "cn-north-1").unwrap().contains("identity belongs to the partition aws"));
    assert_eq!(conflict("aws", "eu-west-1"), None);
}

#[test]
fn the_partition_is_that_of_the_configured_identity_or_of_a_role_that_was_granted() {
    let identity_role_arn = Some(role("aws-us-gov"));
    let configured = sessions(AwsConfig { identity_role_arn, ..AwsConfig::default() });
    assert!(configured.partition_conflict(&role("aws"), &region("eu-west-1")).is_some());
    let learnt = sessions(AwsConfig::default());
    learnt.home.granted(&role("aws-cn"), &region("cn-north-1"));
    assert!(learnt.partition_conflict(&role("aws"), &region("eu-west-1")).is_some());
    let store = url::Url::parse("http://store.example").ok();
    let store = sessions(AwsConfig { s3_endpoint_url: store, ..AwsConfig::default() });
    assert_eq!(store.partition_conflict(&role("aws"), &region("cn-anything")).map(|conflict| conflict.message), None);
}

#[test]
fn a_hundred_thousand_made_up_tenants_leave_no_retry_budgets_behind() {
    let sessions = sessions(AwsConfig::default());
    for n in 0..100_000 {
        let made_up = DestinationIdentity::parse(&format!("made-up~{n:032x}")).unwrap();
        sessions.retry_budget(&made_up);
    }
    sessions.retry_budgets.run_pending_tasks();
    assert!(sessions.retry_budgets.entry_count() <= 10);
    // The SDK keeps every budget that it makes for a name.
    let budget = sessions.retry_budget(&DestinationIdentity::parse("acme").unwrap());
    assert!(format!("{budget:?}").contains("Custom"), "{budget:?}");
}

#[test]
fn home_is_the_configured_region_else_that_of_the_environment() {
    let ours = sessions(AwsConfig { region: Some(region("us-west-2")), ..AwsConfig::default() });
    assert_eq!(ours.home_region(), "us-west-2");
    let environment = sessions(AwsConfig::default());
    environment.home.granted(&role("aws"), &region("ap-south-1"));
    assert_eq!(environment.home_region(), "eu-central-1");
}

#[test]
fn home_is_no_region_that_refused_the_worker_since_it_accepted_it() {
    let home = HomeIdentity::new();
    let granted = |name: &str| home.granted(&role("aws"), &region(name));
    for name in ["eu-west-1", "ap-east-1", "eu-west-1", "ap-east-1"] {
        granted(name);
    }
    assert_eq!(home.last_accepted_in(), Some(region("ap-east-1")));
    home.refused_in("ap-east-1");
    assert_eq!(home.last_accepted_in(), Some(region("eu-west-1")));
    home.refused_in("eu-west-1");
    assert_eq!(home.last_accepted_in(), None);
    granted("ap-east-1");
    assert_eq!(home.last_accepted_in(), Some(region("ap-east-1")), "it accepts the worker again");
}

#[test]
fn home_stays_in_the_partition_of_the_worker() {
    let home = HomeIdentity::new();
    assert_eq!(home.region(), None);
    home.granted(&role("aws-cn"), &region("cn-northwest-1"));
    assert_eq!(home.region(), Some(region("cn-northwest-1")));
    home.refused_in("cn-northwest-1");
    assert_eq!(home.region(), Some(region("cn-north-1")));
}
