#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| remus_testing::fuzz::session(data));
