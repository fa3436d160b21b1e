//! The IAM documents a destination needs, from one model: what consign does, and so what it must be
//! allowed to do.
//!
//! [`Permission`] is the model: each with its action, the statement that grants it for a
//! destination, and what is weaker without it. The session policy of every AssumeRole, `consign
//! policy`, the remedies of the connection test and the customer's guide are all made of it, so
//! that they can't disagree. Pure: no network, no clock, no configuration.

mod cloudformation;
mod document;
mod grants;
mod party;
mod permission;
mod principal;
mod resource;
mod session;
mod terraform;

pub use cloudformation::cloudformation;
pub use document::{Scope, document, permissions, pretty, single, single_on_key};
pub use grants::{
    bucket_policy_fence, bucket_policy_grant, kms_key_policy_statement, kms_statement, kms_statement_on, lifecycle,
    trust,
};
pub use party::Party;
pub use permission::{Need, Permission};
pub use principal::Principal;
pub use resource::TEST_OBJECT;
pub use session::{PolicyForm, SESSION_POLICY_LIMIT, session_policy, session_policy_fits, session_policy_in};
pub use terraform::terraform;

#[cfg(test)]
mod tests;
