//! Python's classes of characters, and its changes of case.

/// `str.isspace`, which `split` and `strip` go by too.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `str.isdecimal`: digits of any script.
pub(super) fn is_decimal(character: char) -> bool {
    const ZEROS: [u32; 37] = [
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
        0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
        0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0,
        0xff10,
    ];
    let code = u32::from(character);
    let mathematical = (0x1d7ce..=0x1d7ff).contains(&code);
    mathematical || ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

/// `str.isdigit`: decimal digits, and those that are raised, lowered or in circles.
pub(super) fn is_digit(character: char) -> bool {
    let others = matches!(
        character,
        '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐' | '⓪'
            | '⓵'..='⓽' | '⓿' | '❶'..='❾' | '➀'..='➈' | '➊'..='➒'
    );
    others || is_decimal(character)
}

/// `str.isnumeric`: digits, fractions and numerals.
pub(super) fn is_numeric(character: char) -> bool {
    character.is_numeric() || "〇零一二三四五六七八九十百千万億兆".contains(character)
}

/// `str.isalpha`: letters, without the marks and numerals that Rust counts among them.
pub(super) fn is_letter(character: char) -> bool {
    let mark = character.escape_debug().count() > 1;
    character.is_alphabetic() && !character.is_numeric() && !mark
}

/// `str.isalnum`.
pub(super) fn is_letter_or_number(character: char) -> bool {
    is_letter(character) || is_numeric(character)
}

/// Whether the letter has a case.
pub(super) fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase() || is_titlecase(character)
}

/// Letters such as `ǅ`.
pub(super) fn is_titlecase(character: char) -> bool {
    matches!(character, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | 'ᾈ'..='ᾏ' | 'ᾘ'..='ᾟ' | 'ᾨ'..='ᾯ' | 'ᾼ' | 'ῌ' | 'ῼ')
}

/// The letter as the first of a word.
pub(super) fn title(character: char) -> String {
    match character {
        'Ǆ'..='ǆ' => "ǅ".into(),
        'Ǉ'..='ǉ' => "ǈ".into(),
        'Ǌ'..='ǌ' => "ǋ".into(),
        'Ǳ'..='ǳ' => "ǲ".into(),
        _ => {
            let mut upper = character.to_uppercase();
            let first = upper.next().map(String::from).unwrap_or_default();
            first + &upper.flat_map(char::to_lowercase).collect::<String>()
        }
    }
}

/// `str.capitalize`.
pub(super) fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(title).unwrap_or_default();
    // As part of the word, so that a sigma at its end is one.
    let lower = text.to_lowercase();
    let kept: usize = text.chars().next().map_or(0, |c| c.to_lowercase().map(char::len_utf8).sum());
    first + lower.get(kept..).unwrap_or_default()
}

/// `str.title`: every letter behind one without a case begins a word.
pub(super) fn titled(text: &str) -> String {
    let mut within = false;
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match within {
            true => result.extend(character.to_lowercase()),
            false => result += &title(character),
        }
        within = is_cased(character);
    }
    result
}

/// `str.swapcase`.
pub(super) fn swapped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_uppercase() {
            true => result.extend(character.to_lowercase()),
            false => result.extend(character.to_uppercase()),
        }
    }
    result
}

/// `str.casefold`.
pub(super) fn folded(text: &str) -> String {
    let fold = |character: char| -> Vec<char> {
        match character {
            'ı' => vec!['ı'],
            'ẞ' => vec!['s', 's'],
            'İ' => character.to_lowercase().collect(),
            _ => character.to_uppercase().flat_map(char::to_lowercase).collect(),
        }
    };
    text.chars().flat_map(fold).collect()
}

/// `str.istitle`.
pub(super) fn is_titled(text: &str) -> bool {
    let (mut within, mut any) = (false, false);
    for character in text.chars() {
        let upper = character.is_uppercase() || is_titlecase(character);
        let lower = character.is_lowercase();
        if (upper && within) || (lower && !within) {
            return false;
        }
        within = upper || lower;
        any |= within;
    }
    any
}

/// `str.isidentifier`.
pub(super) fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    let begins = |c: char| c == '_' || is_letter(c);
    characters.next().is_some_and(begins) && characters.all(|c| begins(c) || is_decimal(c))
}

/// `str.splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, end)) = rest.char_indices().find(|(_, c)| is_end(*c)) {
        let length = if rest[at..].starts_with("\r\n") { 2 } else { end.len_utf8() };
        lines.push(rest[..if keep_ends { at + length } else { at }].to_owned());
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}
