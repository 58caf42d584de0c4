//! Chat templates, rendered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::within_limits;
use sppo_model::text::ChatTemplate;
use sppo_plugin::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let turn = |role: &'static str, content: &'static str| Message {
        role: role.into(),
        content: content.into(),
    };
    let conversation = [
        turn("system", "Be brief."),
        turn("user", " Hi  there, é "),
        turn("assistant", "<think>\nhm\n</think>\n\nHello"),
        turn("user", "7"),
    ];
    let tokens = [("bos_token".to_owned(), "<s>".to_owned())];
    within_limits(|| {
        let template = ChatTemplate::new(source, tokens.to_vec());
        let _ = template.render(&conversation, true);
    });
});
