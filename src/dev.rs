//! Everything on one machine, for a first look.
pub mod cloud;
