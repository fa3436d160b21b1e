//! The parts of an ARN, and the partitions of AWS.

/// A partition of AWS.
pub(crate) struct Partition {
    name: &'static str,
    /// Beginning of the names of its regions.
    regions: &'static str,
    /// The region where its global services are at home.
    home: &'static str,
    /// The DNS suffix of its services, as the SDK's own table has it.
    pub(crate) dns_suffix: &'static str,
}

/// Partitions that AWS has. The oldest, whose regions have no common beginning, is the first.
static PARTITIONS: [Partition; 8] = [
    Partition { name: "aws", regions: "", home: "us-east-1", dns_suffix: "amazonaws.com" },
    Partition { name: "aws-cn", regions: "cn-", home: "cn-north-1", dns_suffix: "amazonaws.com.cn" },
    Partition { name: "aws-us-gov", regions: "us-gov-", home: "us-gov-west-1", dns_suffix: "amazonaws.com" },
    Partition { name: "aws-eusc", regions: "eusc-", home: "eusc-de-east-1", dns_suffix: "amazonaws.eu" },
    Partition { name: "aws-iso", regions: "us-iso-", home: "us-iso-east-1", dns_suffix: "c2s.ic.gov" },
    Partition { name: "aws-iso-b", regions: "us-isob-", home: "us-isob-east-1", dns_suffix: "sc2s.sgov.gov" },
    Partition { name: "aws-iso-e", regions: "eu-isoe-", home: "eu-isoe-west-1", dns_suffix: "cloud.adc-e.uk" },
    Partition { name: "aws-iso-f", regions: "us-isof-", home: "us-isof-south-1", dns_suffix: "csp.hci.ic.gov" },
];

/// The partition of this name; the oldest for one that nobody knows.
pub(crate) fn partition_named(name: &str) -> &'static Partition {
    PARTITIONS.iter().find(|partition| partition.name == name).unwrap_or(&PARTITIONS[0])
}

/// The region of a partition where its global services are at home.
pub(crate) fn home_region_of(partition: &str) -> &'static str {
    partition_named(partition).home
}

/// The partition of a region, by the beginning of its name; one that nobody knows is taken for one
/// of the oldest partition.
pub(crate) fn partition_of(region: &str) -> &'static str {
    let named = PARTITIONS[1..].iter().find(|partition| region.starts_with(partition.regions));
    named.unwrap_or(&PARTITIONS[0]).name
}

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`. Partition and account are valid; the rest is
/// only split.
pub(crate) struct Arn<'a> {
    pub(crate) partition: &'a str,
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) resource: &'a str,
}

pub(crate) fn split_arn(text: &str) -> Option<Arn<'_>> {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next();
    let (head, partition, service) = (next()?, next()?, next()?);
    let (region, account, resource) = (next()?, next()?, next()?);
    let known = head == "arn" && PARTITIONS.iter().any(|known| known.name == partition) && is_account(account);
    known.then_some(Arn { partition, service, region, account, resource })
}

/// Returns true for the id of an account: 12 digits.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}
