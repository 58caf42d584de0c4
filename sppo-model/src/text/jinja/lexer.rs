//! The words of a template, as Jinja2's lexer finds them.
//!
//! Text between tags, comments, raw parts and tags are told apart before anything is changed, so that a
//! `{%` in a text, a comment or a raw part is never taken for a tag.

use super::characters::is_space;

/// What is wrong with a template, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Brackets in brackets deeper than this are refused.
const DEEPEST: usize = 100;

/// Words without a comma between them beyond which an expression is refused: each operator is a step deeper
/// in the tree that minijinja makes of it.
const LONGEST: usize = 600;

/// A word of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Space(String),
    Name(String),
    Number(String),
    /// A text, its escapes replaced by what they stand for.
    Text(String),
    Symbol(&'static str),
    /// What stands between two brackets.
    Group(char, Vec<Token>, char),
}

impl Token {
    pub(super) fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self, Self::Symbol(found) if *found == symbol)
    }

    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Segment<'a> {
    /// Text that is printed as it stands, and comments.
    Plain(&'a str),
    /// Text of a raw part, with the signs of its tags that trim the white space around it.
    Raw {
        before: &'a str,
        text: &'a str,
        line_breaks: usize,
    },
    Tag(Tag),
}

/// `{% ... %}` or `{{ ... }}`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tag {
    pub(super) is_block: bool,
    /// `-`, `+` or nothing, at the beginning and at the end.
    pub(super) signs: (&'static str, &'static str),
    pub(super) tokens: Vec<Token>,
    pub(super) line: usize,
}

/// The operators of Jinja2, the longer ones first.
const SYMBOLS: [&str; 19] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", ">", "<", "=", ".", ":", "|",
    ",",
];

pub(super) fn segments(source: &str) -> Result<Vec<Segment<'_>>, SyntaxError> {
    let mut lexer = Lexer { source, at: 0 };
    let mut found = Vec::new();
    while lexer.at < source.len() {
        lexer.segment(&mut found)?;
    }
    Ok(found)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn error(&self, at: usize, message: impl Into<String>) -> SyntaxError {
        let line = 1 + self.source[..at.min(self.source.len())].matches('\n').count();
        SyntaxError { line, message: message.into() }
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn sign(&mut self) -> &'static str {
        ["-", "+"].into_iter().find(|sign| self.take(sign)).unwrap_or_default()
    }

    fn spaces(&mut self) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !is_space(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// The next piece of text, and the tag, comment or raw part behind it.
    fn segment(&mut self, found: &mut Vec<Segment<'a>>) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let begins = |(at, _): &(usize, &str)| rest[at + 1..].starts_with(['{', '%', '#']);
        let Some((length, _)) = rest.match_indices('{').find(begins) else {
            found.push(Segment::Plain(rest));
            self.at = self.source.len();
            return Ok(());
        };
        let (plain, start) = (&rest[..length], self.at + length);
        self.at = start + 2;
        match rest.as_bytes()[length + 1] {
            b'#' => {
                let end = self.rest().find("#}");
                match end {
                    Some(end) => self.at += end + 2,
                    // Jinja2 misses an end only where something stands before it.
                    None if self.rest().is_empty() => {
                        found.push(Segment::Plain(plain));
                        return Ok(());
                    }
                    None => return Err(self.error(start, "missing end of comment tag")),
                }
                found.push(Segment::Plain(&self.source[start - length..self.at]));
            }
            kind => {
                let is_block = kind == b'%';
                let sign = self.sign();
                if is_block && let Some(raw) = self.raw(plain, sign, start)? {
                    found.push(raw);
                    return Ok(());
                }
                found.push(Segment::Plain(plain));
                let (tokens, end) = self.tokens(is_block)?;
                let line = self.error(start, "").line;
                found.push(Segment::Tag(Tag { is_block, signs: (sign, end), tokens, line }));
            }
        }
        Ok(())
    }

    /// `raw ... endraw`, where that is what follows the beginning of a block.
    fn raw(
        &mut self,
        plain: &'a str,
        sign: &str,
        start: usize,
    ) -> Result<Option<Segment<'a>>, SyntaxError> {
        let begin = self.at;
        self.spaces();
        let is_raw = self.take("raw");
        self.spaces();
        let trims = self.take("-%}");
        if !is_raw || !(trims || self.take("%}")) {
            self.at = begin;
            return Ok(None);
        }
        let mut line_breaks = if trims { self.spaces().matches('\n').count() } else { 0 };
        let text_start = self.at;
        loop {
            let Some(next) = self.rest().find("{%") else {
                return Err(self.error(start, "missing end of raw directive"));
            };
            let text = &self.source[text_start..self.at + next];
            self.at += next + 2;
            let end_sign = self.sign();
            self.spaces();
            if !self.take("endraw") {
                continue;
            }
            self.spaces();
            let closing = ["-%}", "+%}", "%}"].into_iter().find(|closing| self.take(closing));
            match closing {
                Some("-%}") => line_breaks += self.spaces().matches('\n').count(),
                Some("%}") => line_breaks += usize::from(self.take("\n")),
                Some(_) => (),
                None => continue,
            }
            let before = before_tag(plain, sign, start == plain.len());
            let text = before_tag(text, end_sign, false);
            return Ok(Some(Segment::Raw { before, text, line_breaks }));
        }
    }

    /// The words up to the end of a tag, and the sign there.
    fn tokens(&mut self, is_block: bool) -> Result<(Vec<Token>, &'static str), SyntaxError> {
        let ends: &[(&str, &str)] = match is_block {
            true => &[("-%}", "-"), ("+%}", "+"), ("%}", "")],
            false => &[("-}}", "-"), ("}}", "")],
        };
        let start = self.at;
        let mut open: Vec<(char, Vec<Token>, usize)> = Vec::new();
        let mut tokens = Vec::new();
        let mut length = 0;
        while self.at < self.source.len() {
            if open.is_empty()
                && let Some((_, sign)) = ends.iter().find(|(end, _)| self.take(end))
            {
                return Ok((tokens, sign));
            }
            let at = self.at;
            match self.rest().chars().next() {
                Some(bracket @ ('(' | '[' | '{')) => {
                    if open.len() > DEEPEST {
                        return Err(self.error(at, "brackets are nested too deeply"));
                    }
                    self.at += 1;
                    open.push((bracket, std::mem::take(&mut tokens), std::mem::take(&mut length)));
                }
                Some(bracket @ (')' | ']' | '}')) => {
                    self.at += 1;
                    let Some((opening, before, length_before)) = open.pop() else {
                        return Err(self.error(at, format!("unexpected `{bracket}`")));
                    };
                    let expected = match opening {
                        '(' => ')',
                        '[' => ']',
                        _ => '}',
                    };
                    if bracket != expected {
                        let message = format!("unexpected `{bracket}`, expected `{expected}`");
                        return Err(self.error(at, message));
                    }
                    let inner = std::mem::replace(&mut tokens, before);
                    length = length_before;
                    tokens.push(Token::Group(opening, inner, bracket));
                }
                _ => tokens.push(self.word()?),
            }
            length = match tokens.last() {
                Some(Token::Space(_)) => length,
                Some(token) if token.is_symbol(",") => 0,
                _ => length + 1,
            };
            if length > LONGEST {
                return Err(self.error(at, format!("an expression of more than {LONGEST} words")));
            }
        }
        Err(self.error(start, "a tag is not closed"))
    }

    fn word(&mut self) -> Result<Token, SyntaxError> {
        let (at, rest) = (self.at, self.rest());
        let first = rest.chars().next().unwrap_or(' ');
        let run = |belongs: &dyn Fn(char) -> bool| rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        if is_space(first) {
            return Ok(Token::Space(self.spaces().to_owned()));
        }
        if first.is_ascii_digit() {
            let length = number_length(rest, !self.source[..at].ends_with('.'));
            self.at += length;
            return Ok(Token::Number(rest[..length].to_owned()));
        }
        if first == '_' || first.is_alphabetic() {
            let length = run(&|c| c == '_' || c.is_alphanumeric());
            self.at += length;
            return Ok(Token::Name(rest[..length].to_owned()));
        }
        if matches!(first, '"' | '\'') {
            let length = text_length(rest, first).ok_or_else(|| {
                self.error(at, format!("unexpected `{first}`: a text is not closed"))
            })?;
            self.at += length;
            let text =
                unescaped(&rest[1..length - 1]).map_err(|message| self.error(at, message))?;
            return Ok(Token::Text(text));
        }
        let symbol = SYMBOLS.into_iter().find(|symbol| self.take(symbol));
        symbol.map(Token::Symbol).ok_or_else(|| self.error(at, format!("unexpected `{first}`")))
    }
}

/// The text before a tag, without the white space that the tag's sign (or its place on a line of its own)
/// takes away. `first` says that the text begins a line.
fn before_tag<'a>(text: &'a str, sign: &str, first: bool) -> &'a str {
    let line = text.rfind('\n').map_or(0, |at| at + 1);
    match sign {
        "-" => text.trim_end_matches(is_space),
        "" if text[line..].chars().all(is_space) && (first || line > 0) => &text[..line],
        _ => text,
    }
}

/// Length of a number; only one that does not follow a point can be a float.
fn number_length(text: &str, may_be_float: bool) -> usize {
    let prefixed = |prefix: &str, digit: fn(&char) -> bool| {
        let start = text.get(..2).filter(|start| start.eq_ignore_ascii_case(prefix))?;
        let digits = text[start.len()..].chars().take_while(|c| *c == '_' || digit(c)).count();
        (digits > 0).then_some(2 + digits)
    };
    let based = prefixed("0x", |c| c.is_ascii_hexdigit())
        .or_else(|| prefixed("0o", |c| ('0'..='7').contains(c)))
        .or_else(|| prefixed("0b", |c| matches!(c, '0' | '1')));
    if let Some(length) = based {
        return length;
    }
    let digits = |from: usize| {
        let run = text[from..].chars().take_while(|c| *c == '_' || c.is_ascii_digit()).count();
        text[from..].starts_with(|c: char| c.is_ascii_digit()).then_some(from + run)
    };
    let mut end = digits(0).unwrap_or(0);
    if may_be_float {
        if let Some(fraction) = text[end..].strip_prefix('.').and_then(|_| digits(end + 1)) {
            end = fraction;
        }
        if text[end..].starts_with(['e', 'E']) {
            let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
            end = digits(end + 1 + sign).unwrap_or(end);
        }
    }
    end
}

/// Length of a text with its quotes.
fn text_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Some(at + 1),
            _ => (),
        }
    }
    None
}

/// The text that stands in a template with Python's escapes.
fn unescaped(text: &str) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\\' {
            result.push(character);
            continue;
        }
        let Some(escape) = characters.next() else { break };
        let mut number = |radix: u32, most: usize| -> Option<char> {
            let mut code = 0;
            let mut length = 0;
            while length < most
                && let Some(digit) = characters.peek().and_then(|c| c.to_digit(radix))
            {
                code = code * radix + digit;
                length += 1;
                characters.next();
            }
            (length == most).then(|| char::from_u32(code)).flatten()
        };
        let incomplete = |escape: char| format!("the escape `\\{escape}` is not a character");
        match escape {
            '\n' => (),
            '\\' | '\'' | '"' => result.push(escape),
            'a' => result.push('\x07'),
            'b' => result.push('\x08'),
            'f' => result.push('\x0c'),
            'n' => result.push('\n'),
            'r' => result.push('\r'),
            't' => result.push('\t'),
            'v' => result.push('\x0b'),
            'x' => result.push(number(16, 2).ok_or_else(|| incomplete(escape))?),
            'u' => result.push(number(16, 4).ok_or_else(|| incomplete(escape))?),
            'U' => result.push(number(16, 8).ok_or_else(|| incomplete(escape))?),
            'N' => return Err("escapes by a character's name (`\\N`) are not supported".into()),
            '0'..='7' => {
                let mut code = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = characters.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    characters.next();
                }
                result.push(char::from_u32(code).unwrap_or_default());
            }
            other if other.is_ascii() => result.extend(['\\', other]),
            // Python escapes the character first, and then takes its backslash for escaped.
            other => result.push_str(&super::python::escape(other)),
        }
    }
    Ok(result)
}
