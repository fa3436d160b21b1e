//! The `Date` of a reply: the clock an object's time is compared with must be S3's own.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// Returns the time of a `Date` header, in whole seconds.
pub(super) fn time_of(date: &str) -> Option<SystemTime> {
    let seconds = u64::try_from(DateTime::from_str(date, Format::HttpDate).ok()?.secs()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
