//! The `Date` of a reply: S3's own clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use parking_lot::Mutex;

/// Keeps the `Date` of a reply: the clock an object's time is compared with must be S3's own.
#[derive(Debug, Clone, Default)]
pub(super) struct DateHeader(Arc<Mutex<Option<SystemTime>>>);

impl DateHeader {
    /// The time of the reply, in whole seconds.
    pub(super) fn get(&self) -> Option<SystemTime> {
        let time = (*self.0.lock())?;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let header = context.response().headers().get("date");
        let date = header.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok());
        *self.0.lock() = date.and_then(|date| SystemTime::try_from(date).ok());
        Ok(())
    }
}
