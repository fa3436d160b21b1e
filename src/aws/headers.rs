//! Headers of responses that the outputs of the SDK leave out.

use std::sync::Arc;

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use parking_lot::Mutex;

/// Keeps a header of the last response.
#[derive(Debug, Clone)]
pub(crate) struct KeptHeader {
    name: &'static str,
    value: Arc<Mutex<Option<String>>>,
}

impl KeptHeader {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, value: Arc::default() }
    }

    /// Returns the header; `None` if the response has none, or before there is one.
    pub(crate) fn get(&self) -> Option<String> {
        self.value.lock().clone()
    }
}

impl Intercept for KeptHeader {
    fn name(&self) -> &'static str {
        "KeptHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.value.lock() = context.response().headers().get(self.name).map(str::to_owned);
        Ok(())
    }
}
