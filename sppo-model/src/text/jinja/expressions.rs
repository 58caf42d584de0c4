//! Expressions of Jinja2, written as minijinja understands them.
//!
//! What minijinja parses or computes otherwise becomes a call: `%` and `~` (whose operands it treats as Rust does),
//! attributes that Python's values have, parts of lists, calls of macros with `varargs`.

use std::collections::BTreeSet;

use super::attributes::are_pythons;
use super::lexer::Token;

/// Words that no operand ends with.
const KEYWORDS: [&str; 12] =
    ["and", "or", "not", "in", "is", "if", "else", "elif", "for", "set", "recursive", "with"];

/// The words of an expression, with operators, attributes and calls as minijinja takes them. `packed` are the
/// macros that take their arguments in one.
///
/// # Errors
/// What is not supported.
pub(super) fn expression(
    tokens: Vec<Token>,
    packed: &BTreeSet<String>,
) -> Result<Vec<Token>, String> {
    let mut result: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            Token::Group(open, inner, close) => {
                group(&mut result, open, expression(inner, packed)?, close, packed);
            }
            // A plus before a number changes nothing.
            Token::Symbol("+") if !ends_operand(&result) => (),
            Token::Name(name) if needs_next(&name, &result) => {
                let is_space = |token: &Token| matches!(token, Token::Space(_));
                let spaces: Vec<Token> = std::iter::from_fn(|| tokens.next_if(is_space)).collect();
                match tokens.peek() {
                    Some(Token::Group('(', ..)) if name != "self" => result.push(Token::Name(name)),
                    Some(next) if name == "self" && next.is_symbol("=") => {
                        result.push(Token::Name(name));
                    }
                    _ if name == "self" => return Err("`self` is not supported".into()),
                    _ => attribute(&mut result, name),
                }
                result.extend(spaces);
            }
            token => result.push(token),
        }
    }
    Ok(concatenated(with_remainders(result)))
}

/// Whether a name means one thing or another by the word that follows.
fn needs_next(name: &str, before: &[Token]) -> bool {
    if is_after_point(before) { are_pythons(name) } else { name == "self" }
}

/// Adds brackets: of a call, a part of a list, or anything else.
fn group(
    result: &mut Vec<Token>,
    open: char,
    inner: Vec<Token>,
    close: char,
    packed: &BTreeSet<String>,
) {
    let is_part = open == '[' && inner.iter().any(|token| token.is_symbol(":"));
    if is_part && ends_operand(result) {
        let operand = result.split_off(operand_start(result));
        let mut parts: Vec<Vec<Token>> =
            inner.split(|token| token.is_symbol(":")).map(<[Token]>::to_vec).collect();
        parts.resize(3.max(parts.len()), Vec::new());
        let is_empty =
            |part: &Vec<Token>| part.iter().all(|token| matches!(token, Token::Space(_)));
        for part in parts.iter_mut().filter(|part| is_empty(part)) {
            *part = vec![Token::Name("none".into())];
        }
        parts.insert(0, operand);
        result.push(call("jinja_slice", parts));
        return;
    }
    let inner = match open == '(' && ends_operand(result) {
        true if is_packed_call(result, packed) => vec![call("jinja_arguments", vec![inner])],
        true if is_cycle(result) => vec![Token::Symbol("*"), call("jinja_choices", vec![inner])],
        _ => inner,
    };
    result.push(Token::Group(open, inner, close));
}

/// Adds an attribute that Python's values have, and that is not called. Those of `loop` are Jinja2's own.
fn attribute(result: &mut Vec<Token>, name: String) {
    let point = result.iter().rposition(|token| token.is_symbol(".")).unwrap_or(result.len());
    let start = operand_start(&result[..point]);
    if matches!(&result[start..point], [Token::Name(only)] if only == "loop") || start == point {
        result.push(Token::Name(name));
        return;
    }
    let mut operand = result.split_off(start);
    operand.truncate(point - start);
    result.push(call("jinja_attribute", vec![operand, vec![Token::Text(name)]]));
}

/// The words before this place, spaces aside, the last first.
fn words_before(tokens: &[Token]) -> impl Iterator<Item = &Token> {
    tokens.iter().rev().filter(|token| !matches!(token, Token::Space(_)))
}

fn is_after_point(before: &[Token]) -> bool {
    words_before(before).next().is_some_and(|token| token.is_symbol("."))
}

/// Where the operand begins that ends at the end of these words: a name, a text or brackets, with attributes,
/// parts and calls behind.
fn operand_start(tokens: &[Token]) -> usize {
    let mut start = tokens.len();
    for (at, token) in tokens.iter().enumerate().rev() {
        let before = &tokens[..at];
        match token {
            Token::Space(_) => continue,
            Token::Symbol(".") => (),
            Token::Symbol(_) => break,
            Token::Name(_) | Token::Number(_) if is_after_point(before) => (),
            Token::Group('(' | '[', ..) if ends_operand(before) => (),
            Token::Text(_) if matches!(words_before(before).next(), Some(Token::Text(_))) => (),
            _ => return at,
        }
        start = at;
    }
    start
}

/// Whether the words before a bracket are the name of a macro with packed arguments.
fn is_packed_call(before: &[Token], packed: &BTreeSet<String>) -> bool {
    let mut before = words_before(before);
    let name = before.next().and_then(Token::name);
    let is_attribute = before.next().is_some_and(|token| token.is_symbol("."));
    name.is_some_and(|name| packed.contains(name)) && !is_attribute
}

/// Whether the words before a bracket are a method `cycle`.
fn is_cycle(before: &[Token]) -> bool {
    let mut before = words_before(before);
    before.next().and_then(Token::name) == Some("cycle")
        && before.next().is_some_and(|token| token.is_symbol("."))
}

/// A tuple that is written without parentheses, with them.
pub(super) fn in_parentheses(tokens: Vec<Token>) -> Vec<Token> {
    match tokens.iter().any(|token| token.is_symbol(",")) {
        true => vec![Token::Group('(', tokens, ')')],
        false => tokens,
    }
}

pub(super) fn call(name: &str, arguments: Vec<Vec<Token>>) -> Token {
    // One word for the parser: a name and its brackets.
    let mut inner = Vec::new();
    for (index, argument) in arguments.into_iter().enumerate() {
        if index > 0 {
            inner.push(Token::Symbol(","));
        }
        inner.extend(argument);
    }
    Token::Group('\0', vec![Token::Name(name.into()), Token::Group('(', inner, ')')], '\0')
}

/// Whether an operand ends here, so that a sign that follows stands between two.
fn ends_operand(tokens: &[Token]) -> bool {
    match words_before(tokens).next() {
        None | Some(Token::Symbol(_)) => false,
        Some(Token::Name(name)) => !KEYWORDS.contains(&name.as_str()),
        Some(_) => true,
    }
}

/// Whether a word stands outside the operands of a product: a weaker operator, or a keyword.
fn is_outside(tokens: &[Token], at: usize) -> bool {
    match &tokens[at] {
        Token::Symbol("+" | "-") => ends_operand(&tokens[..at]),
        Token::Symbol(symbol) => {
            [",", ":", "=", "==", "!=", "<", ">", "<=", ">=", "~"].contains(symbol)
        }
        Token::Name(name) => name != "is" && KEYWORDS.contains(&name.as_str()),
        _ => false,
    }
}

/// Calls in place of the operator `%`.
fn with_remainders(mut tokens: Vec<Token>) -> Vec<Token> {
    while let Some(at) = tokens.iter().position(|token| token.is_symbol("%")) {
        let start = (0..at).rev().find(|&at| is_outside(&tokens, at)).map_or(0, |at| at + 1);
        let is_product =
            |token: &Token| ["*", "/", "//", "%"].iter().any(|symbol| token.is_symbol(symbol));
        let end = (at + 1..tokens.len())
            .find(|&at| is_outside(&tokens, at) || is_product(&tokens[at]))
            .unwrap_or(tokens.len());
        let mut operands: Vec<Token> = tokens.drain(start..end).collect();
        let right = operands.split_off(at - start + 1);
        operands.pop();
        tokens.insert(start, spaced(call("jinja_remainder", vec![operands, right])));
    }
    tokens
}

/// Calls in place of chains of the operator `~`.
fn concatenated(mut tokens: Vec<Token>) -> Vec<Token> {
    while let Some(at) = tokens.iter().position(|token| token.is_symbol("~")) {
        let start = (0..at).rev().find(|&at| is_outside(&tokens, at)).map_or(0, |at| at + 1);
        let end = (at + 1..tokens.len())
            .find(|&at| is_outside(&tokens, at) && !tokens[at].is_symbol("~"))
            .unwrap_or(tokens.len());
        let chain: Vec<Token> = tokens.drain(start..end).collect();
        let operands = chain.split(|token| token.is_symbol("~")).map(<[Token]>::to_vec).collect();
        tokens.insert(start, spaced(call("jinja_concatenation", operands)));
    }
    tokens
}

/// The word between spaces, so that it does not run into the words around it.
fn spaced(token: Token) -> Token {
    Token::Group('\0', vec![Token::Space(" ".into()), token, Token::Space(" ".into())], '\0')
}
