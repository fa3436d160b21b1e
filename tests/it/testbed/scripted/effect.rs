//! What a rule does to a call.

use std::time::Duration;

/// Effect of a rule on a call.
#[derive(Debug, Clone)]
pub enum Effect {
    /// An error answer with this status, code and message.
    Error(u16, &'static str, &'static str),
    /// A refusal with a web page, as proxies give it.
    WebPage(u16),
    /// 200 with an error in the body, as CompleteMultipartUpload may do.
    ErrorIn200(&'static str),
    /// 200 with nothing in it.
    EmptyBody,
    /// The connection closes without an answer.
    LostReply,
    /// The answer comes later.
    Delay(Duration),
    /// The call is performed once the rule is lifted: for what must happen while calls run, however
    /// long it takes to bring about. Before only.
    Held,
    /// The answer has this body.
    Body(&'static str),
    /// The answer names another encryption than asked.
    WrongEncryption,
    /// The answer names another checksum than that of the bytes.
    WrongChecksum,
    /// The answer names no checksum.
    NoChecksum,
    /// A bit of the body changes on the way, then the call is performed. Before only.
    Garbled,
    /// The answer has this header, in place of its own.
    Header(&'static str, &'static str),
    /// The call is performed as if it had no If-None-Match. Before only.
    Unconditional,
    /// The upload is aborted by somebody else, then the call is performed. Before only.
    UploadGone,
}

impl Effect {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Error(429 | 500.., ..) => "S3 or STS overloaded",
            Self::Error(..) => "S3 or STS refuses",
            Self::ErrorIn200(_) => "error in 200",
            Self::EmptyBody | Self::Body(_) | Self::WebPage(_) => "odd body",
            Self::LostReply => "lost reply",
            Self::Delay(_) | Self::Held => "slow reply",
            Self::WrongEncryption | Self::WrongChecksum | Self::NoChecksum | Self::Header(..) => "wrong reply",
            Self::Garbled => "bytes changed",
            Self::Unconditional => "condition ignored",
            Self::UploadGone => "upload aborted by somebody",
        }
    }
}
