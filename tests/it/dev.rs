//! `consign dev`: its cloud by the SDK's own clients, and the command as a process.

mod cloud;
mod process;
