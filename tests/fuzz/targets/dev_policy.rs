#![no_main]

#[path = "../oracles.rs"]
#[allow(dead_code, unused_imports, reason = "each target uses one of them")]
mod oracles;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracles::dev_policy(bytes));
