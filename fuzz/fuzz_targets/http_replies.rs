//! Replies of services, in every protocol of the oracle `http`; the first byte chooses one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::within_limits;
use sppo_oracle_http::fuzzing::read_reply;

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    within_limits(|| read_reply(usize::from(*choice), body));
});
