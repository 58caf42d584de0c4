//! Spellings of tokens: the text that a token stands for, however the service writes it.

use serde_json::Value;

/// The way in which some services name tokens instead of spelling them.
const BY_NUMBER: &str = "token_id:";

/// Text of a token as a service names it, with the bytes beside it where there are any.
///
/// Most services write the text itself. Others write the entry of the vocabulary: SentencePiece's `▁A` and
/// `<0x41>`, the byte-level `ĠA` of GPT-2, or the number alone, which only the bytes explain.
pub(super) fn spelled(token: &str, bytes: Option<&Value>) -> String {
    if (token.is_empty() || token.starts_with(BY_NUMBER) || token.contains('\u{fffd}'))
        && let Some(text) = bytes.and_then(text_of_bytes)
        && !text.starts_with(BY_NUMBER)
    {
        return text;
    }
    if let Some(byte) = byte_token(token) {
        return char::from(byte).to_string();
    }
    let token = token.replace('\u{2581}', " ");
    if token.is_ascii() { token } else { byte_level(&token).unwrap_or(token) }
}

/// Whether the text is a number in place of a token.
pub(super) fn is_number(text: &str) -> bool {
    text.starts_with(BY_NUMBER)
}

fn text_of_bytes(bytes: &Value) -> Option<String> {
    let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
    let bytes: Vec<u8> = bytes.as_array()?.iter().map(byte).collect::<Option<_>>()?;
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// The byte of SentencePiece's `<0x41>`, where it is a character by itself.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)
}

/// Text of a token of a byte-level vocabulary, which has a printable character for each byte.
fn byte_level(token: &str) -> Option<String> {
    let bytes: Vec<u8> = token.chars().map(byte_of).collect::<Option<_>>()?;
    String::from_utf8(bytes).ok()
}

/// GPT-2's table: printable bytes stand for themselves, and the others follow from 256 on.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        // A space is written as itself by those who have replaced `▁` by it.
        0x20 => Some(b' '),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_read_in_every_spelling() {
        for (token, bytes, text) in [
            ("A", json!(null), "A"),
            ("▁A", json!([226, 150, 129, 65]), " A"),
            ("ĠA", json!(null), " A"),
            ("ĊA", json!(null), "\nA"),
            ("<0x41>", json!(null), "A"),
            ("token_id:32", json!([65]), "A"),
            ("token_id:32", json!("token_id:32".as_bytes()), "token_id:32"),
            ("token_id:32", json!(null), "token_id:32"),
            ("", json!([65]), "A"),
            ("\u{fffd}", json!([231, 148, 178]), "甲"),
            ("çĶ²", json!(null), "甲"),
            ("甲", json!([231, 148, 178]), "甲"),
            ("é", json!([195, 169]), "é"),
            ("<|im_end|>", json!([]), "<|im_end|>"),
        ] {
            assert_eq!(spelled(token, Some(&bytes)), text, "{token} {bytes}");
        }
        assert!(is_number("token_id:32") && !is_number("A"));
    }
}
