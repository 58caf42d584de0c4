//! A template of Jinja2, written as minijinja understands it.
//!
//! Most of a template stays as it is. What minijinja parses otherwise, or not at all, is written with what
//! it has: escapes in texts, raw parts, `{% generation %}`, tuples without parentheses, macros with `varargs` or
//! with defaults that name other parameters, and in expressions what [`super::expressions`] says.
//! A tag that Jinja2 does not know, or that cannot be had here, is refused by its name.

use std::collections::BTreeSet;

use super::expressions::{call, expression, in_parentheses};
use super::lexer::{Segment, SyntaxError, Tag, Token, segments};

/// Tags that Jinja2 knows and that are not supported.
const UNSUPPORTED: [&str; 5] = ["extends", "from", "import", "include", "print"];

/// Tags that stay as they are.
const KNOWN: [&str; 20] = [
    "autoescape",
    "break",
    "call",
    "continue",
    "elif",
    "else",
    "endautoescape",
    "endcall",
    "endfilter",
    "endfor",
    "endif",
    "endmacro",
    "endset",
    "endwith",
    "filter",
    "for",
    "if",
    "macro",
    "set",
    "with",
];

/// Alternatives (`elif`) in a template beyond which it is refused: each is a step deeper in its tree.
const MOST_ALTERNATIVES: usize = 300;

/// Parts beyond which a template may nest values without a loop.
const MANY_PARTS: usize = 2_000;

/// Writes the template for minijinja. Line breaks stay, so that errors name the right line.
///
/// # Errors
/// What is wrong with it, or is not supported.
pub(super) fn prepared(source: &str) -> Result<Prepared, SyntaxError> {
    // As Jinja2, before anything else and within texts too.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let segments = segments(&source)?;
    let nests = segments.len() > MANY_PARTS || segments.iter().any(nests);
    let mut writer = Writer {
        out: String::with_capacity(source.len()),
        open: Vec::new(),
        packed: packed(&segments),
        alternatives: 0,
    };
    for segment in segments {
        writer.segment(segment)?;
    }
    Ok(Prepared { source: writer.out, nests })
}

/// A template as minijinja takes it.
pub(super) struct Prepared {
    pub(super) source: String,
    /// Whether it may put lists into lists without end: values that outlive a loop are made of others there.
    pub(super) nests: bool,
}

/// Whether a tag gives an attribute (of a namespace, which outlives loops) a value with brackets or filters.
fn nests(segment: &Segment<'_>) -> bool {
    let Segment::Tag(tag) = segment else { return false };
    let Some(equals) = tag.tokens.iter().position(|token| token.is_symbol("=")) else {
        return false;
    };
    let (target, value) = tag.tokens.split_at(equals);
    let makes = |token: &Token| matches!(token, Token::Group(..)) || token.is_symbol("|");
    target.iter().any(|token| token.is_symbol(".")) && value.iter().any(makes)
}

/// Names of the macros that use `varargs` or `kwargs`, which minijinja does not have.
fn packed(segments: &[Segment<'_>]) -> BTreeSet<String> {
    let mut open: Vec<&str> = Vec::new();
    let mut found = BTreeSet::new();
    for segment in segments {
        let Segment::Tag(tag) = segment else { continue };
        let mut words = tag.tokens.iter().filter_map(Token::name);
        match words.next().filter(|_| tag.is_block) {
            Some("macro") => open.extend(words.next()),
            Some("endmacro") => drop(open.pop()),
            _ => (),
        }
        if let Some(name) = open.last()
            && (mentions(&tag.tokens, "varargs") || mentions(&tag.tokens, "kwargs"))
        {
            found.insert((*name).to_owned());
        }
    }
    found
}

fn mentions(tokens: &[Token], name: &str) -> bool {
    tokens.iter().any(|token| match token {
        Token::Group(_, inner, _) => mentions(inner, name),
        token => token.name() == Some(name),
    })
}

struct Writer {
    out: String,
    /// The tags around this place, by name.
    open: Vec<String>,
    packed: BTreeSet<String>,
    alternatives: usize,
}

impl Writer {
    fn segment(&mut self, segment: Segment<'_>) -> Result<(), SyntaxError> {
        match segment {
            Segment::Plain(text) => self.out += text,
            Segment::Raw { before, text, line_breaks } => {
                self.out += before;
                self.out += "{{ ";
                self.out += &quoted(text);
                self.out += &"\n".repeat(line_breaks);
                self.out += " }}";
            }
            Segment::Tag(tag) if tag.is_block => self.block(tag)?,
            Segment::Tag(Tag { line, signs, tokens, .. }) => {
                let tokens = in_parentheses(self.expression(tokens, line)?);
                self.out += &format!("{{{{{}{}{}}}}}", signs.0, printed(&tokens), signs.1);
            }
        }
        Ok(())
    }

    fn block(&mut self, mut tag: Tag) -> Result<(), SyntaxError> {
        let place = tag.tokens.iter().position(|token| token.name().is_some());
        let Some(place) = place else { return self.plain_block(tag) };
        let word = tag.tokens[place].name().unwrap_or_default().to_owned();
        let error = |message: String| Err(SyntaxError { line: tag.line, message });
        match word.as_str() {
            "generation" | "block" => {
                // A part with variables of its own; those of loops and macros are not seen in a block.
                let hidden = self.open.iter().any(|open| open != "if");
                if word == "block" && hidden {
                    return error("the tag `block` within another tag is not supported".into());
                }
                self.open.push(word.clone());
                tag.tokens = vec![Token::Name("with".into())];
            }
            "endgeneration" | "endblock" => {
                if self.open.pop().as_deref() != word.strip_prefix("end") {
                    return error(format!("the tag `{word}` ends nothing"));
                }
                tag.tokens = vec![Token::Name("endwith".into())];
            }
            "macro" => {
                self.open.push(word);
                return self.define_macro(tag);
            }
            _ if UNSUPPORTED.contains(&word.as_str()) => {
                return error(format!("the tag `{word}` is not supported"));
            }
            _ if !KNOWN.contains(&word.as_str()) => return error(format!("unknown tag `{word}`")),
            "elif" if self.alternatives == MOST_ALTERNATIVES => {
                return error(format!("more than {MOST_ALTERNATIVES} alternatives"));
            }
            _ => {
                self.alternatives += usize::from(word == "elif");
                self.follow(&word, &tag.tokens);
            }
        }
        if word == "for" {
            tag.tokens = checked_loop(self.expression(tag.tokens, tag.line)?);
            return self.write_block(tag);
        }
        self.plain_block(tag)
    }

    /// Keeps track of the tags around.
    fn follow(&mut self, word: &str, tokens: &[Token]) {
        let is_block = match word {
            // `set x` takes the text up to its end, `set x = 1` does not.
            "set" => !tokens.iter().any(|token| token.is_symbol("=")),
            "break" | "continue" | "else" | "elif" => false,
            _ => true,
        };
        match word.starts_with("end") {
            true => drop(self.open.pop()),
            false if is_block => self.open.push(word.to_owned()),
            false => (),
        }
    }

    fn plain_block(&mut self, mut tag: Tag) -> Result<(), SyntaxError> {
        let rest = tag.tokens.split_off(target_length(&tag.tokens));
        tag.tokens.extend(self.expression(rest, tag.line)?);
        self.write_block(tag)
    }

    fn expression(&self, tokens: Vec<Token>, line: usize) -> Result<Vec<Token>, SyntaxError> {
        expression(tokens, &self.packed).map_err(|message| SyntaxError { line, message })
    }

    fn write_block(&mut self, tag: Tag) -> Result<(), SyntaxError> {
        let tokens = printed(&tag.tokens);
        // A tag of a minus begins with it after a space, where that is not the sign.
        self.out += &format!(
            "{{%{} {}{}%}}",
            tag.signs.0,
            tokens.trim_start_matches([' ', '\t']),
            tag.signs.1
        );
        Ok(())
    }

    /// A macro whose defaults name other parameters, or that takes more arguments than it names, gives
    /// its parameters their values in its body.
    fn define_macro(&mut self, tag: Tag) -> Result<(), SyntaxError> {
        let name = tag.tokens.iter().filter_map(Token::name).nth(1).unwrap_or_default().to_owned();
        let parameters = tag.tokens.iter().find_map(|token| match token {
            Token::Group('(', inner, _) => Some(parameters(inner)),
            _ => None,
        });
        let Some(parameters) = parameters else { return self.plain_block(tag) };
        let names: Vec<String> = parameters.iter().map(|(name, _)| name.clone()).collect();
        let depends = |default: &[Token]| names.iter().any(|name| mentions(default, name));
        let packed = self.packed.contains(&name);
        if !packed && !parameters.iter().any(|(_, default)| depends(default)) {
            return self.plain_block(tag);
        }
        let quoted_names = names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        match packed {
            false => parts.push(format!("macro {name}({})", names.join(", "))),
            true => parts.push(format!("macro {name}(jinja_given)")),
        }
        for (index, (parameter, default)) in parameters.into_iter().enumerate() {
            if packed {
                parts.push(format!("set {parameter} = jinja_given.take({index}, '{parameter}')"));
            }
            if !default.is_empty() {
                let default = printed(&self.expression(default, tag.line)?);
                parts.push(format!("if {parameter} is undefined"));
                parts.push(format!("set {parameter} = ({default})"));
                parts.push("endif".into());
            }
        }
        if packed {
            parts.push(format!("set varargs = jinja_given.rest({quoted_names})"));
            parts.push(format!("set kwargs = jinja_given.others({quoted_names})"));
        }
        let line_breaks = printed(&tag.tokens).matches('\n').count();
        let parts = parts.join(" %}{% ");
        let written = parts.matches('\n').count();
        let missing = "\n".repeat(line_breaks.saturating_sub(written));
        self.out += &format!("{{%{} {parts} {missing}{}%}}", tag.signs.0, tag.signs.1);
        Ok(())
    }
}

/// The words of a tag that name what it sets: those before the value, or before filters.
fn target_length(tokens: &[Token]) -> usize {
    match tokens.iter().find_map(Token::name) {
        Some("set") => {
            let ends = |token: &Token| token.is_symbol("=") || token.is_symbol("|");
            tokens.iter().position(ends).unwrap_or(tokens.len())
        }
        _ => 0,
    }
}

/// Names and defaults of a macro's parameters.
fn parameters(tokens: &[Token]) -> Vec<(String, Vec<Token>)> {
    let parts = tokens.split(|token| token.is_symbol(","));
    parts
        .filter_map(|part| {
            let name = part.iter().find_map(Token::name)?.to_owned();
            let default = part.iter().position(|token| token.is_symbol("="));
            Some((name, default.map_or_else(Vec::new, |at| part[at + 1..].to_vec())))
        })
        .collect()
}

/// `for` goes through what Python could go through, and may list items without brackets.
fn checked_loop(mut tokens: Vec<Token>) -> Vec<Token> {
    let is = |token: &Token, word: &str| token.name() == Some(word);
    let Some(start) = tokens.iter().position(|token| is(token, "in")) else { return tokens };
    let end = tokens[start..].iter().position(|token| is(token, "if") || is(token, "recursive"));
    let end = end.map_or(tokens.len(), |end| start + end);
    let items: Vec<Token> = tokens.drain(start + 1..end).collect();
    if items.iter().all(|token| matches!(token, Token::Space(_))) {
        return tokens;
    }
    let items = [
        Token::Space(" ".into()),
        call("jinja_items", vec![in_parentheses(items)]),
        Token::Space(" ".into()),
    ];
    tokens.splice(start + 1..start + 1, items);
    tokens
}

fn printed(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens {
        match token {
            Token::Space(space) => text += space,
            Token::Name(word) | Token::Number(word) => text += word,
            Token::Text(content) => text += &quoted(content),
            Token::Symbol(symbol) => text += symbol,
            Token::Group('\0', inner, _) => text += &printed(inner),
            Token::Group(open, inner, close) => {
                text.push(*open);
                text += &printed(inner);
                text.push(*close);
            }
        }
    }
    text
}

/// A text in minijinja's escapes.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\r', "\\r");
    format!("'{escaped}'")
}
