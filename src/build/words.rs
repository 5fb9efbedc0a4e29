//! Words of an instruction, and the variables in them. Pure.

/// How deep `${A:-${B:-…}}` may go.
const MAX_DEPTH: usize = 8;
/// The most bytes that a word may become.
const MAX_WORD: usize = 1 << 20;

/// The words of a line, divided by blanks that are neither quoted nor escaped. Quotes stay.
///
/// # Errors
/// A quote that is not closed.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if let Some(quote) = quote {
        return Err(format!("a quote is not closed: {quote}"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// The word with its variables replaced and its quotes taken off.
///
/// # Errors
/// A form of `${…}` that is not understood, and a variable that is missing where that is said to be wrong.
pub fn expand(word: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expander = Expander { lookup, quotes: true };
    expander.run(word, 0)
}

/// The text with its variables replaced; quotes mean nothing.
///
/// # Errors
/// As [`expand`].
pub fn expand_text(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    Expander { lookup, quotes: false }.run(text, 0)
}

struct Expander<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    quotes: bool,
}

impl Expander<'_> {
    fn run(&mut self, text: &str, depth: usize) -> Result<String, String> {
        if depth > MAX_DEPTH {
            return Err(format!("variables stand in each other more than {MAX_DEPTH} deep"));
        }
        let mut out = String::new();
        let mut rest = text;
        let mut in_double = false;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\'' if self.quotes && !in_double => {
                    let (inner, behind) = rest.split_once('\'').ok_or("a quote is not closed: '")?;
                    out.push_str(inner);
                    rest = behind;
                }
                '"' if self.quotes => in_double = !in_double,
                '\\' => {
                    let Some(next) = rest.chars().next() else {
                        out.push('\\');
                        break;
                    };
                    let is_escape = match (self.quotes, in_double) {
                        (true, false) => true,
                        (true, true) => matches!(next, '"' | '$' | '\\'),
                        (false, _) => matches!(next, '$' | '\\'),
                    };
                    if !is_escape {
                        out.push('\\');
                    }
                    out.push(next);
                    rest = &rest[next.len_utf8()..];
                }
                '$' => rest = self.variable(rest, &mut out, depth)?,
                c => out.push(c),
            }
            if out.len() > MAX_WORD {
                return Err(format!("it becomes longer than {MAX_WORD} bytes"));
            }
        }
        match in_double {
            true => Err("a quote is not closed: \"".to_owned()),
            false => Ok(out),
        }
    }

    /// What stands behind `$`; the rest.
    fn variable<'t>(&mut self, text: &'t str, out: &mut String, depth: usize) -> Result<&'t str, String> {
        let name_len = |text: &str| {
            let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
            if text.starts_with(|c: char| c.is_ascii_digit()) { 0 } else { end }
        };
        let Some(braced) = text.strip_prefix('{') else {
            let (name, rest) = text.split_at(name_len(text));
            match name {
                "" => out.push('$'),
                name => out.push_str(&(self.lookup)(name).unwrap_or_default()),
            }
            return Ok(rest);
        };
        let (name, behind) = braced.split_at(name_len(braced));
        let shown = || format!("`${{{}`", braced.chars().take(40).collect::<String>());
        let end = closing(behind).ok_or_else(|| format!("{} is not closed", shown()))?;
        let (how, rest) = (&behind[..end], &behind[end + 1..]);
        if name.is_empty() {
            return Err(format!("{} names no variable", shown()));
        }
        let value = (self.lookup)(name);
        let (needs_text, how) = match how.strip_prefix(':') {
            Some(how) => (true, how),
            None => (false, how),
        };
        let there = value.clone().filter(|value| !needs_text || !value.is_empty());
        let given = |prefix: char| how.strip_prefix(prefix);
        if how.is_empty() && !needs_text {
            out.push_str(&value.unwrap_or_default());
        } else if let Some(default) = given('-') {
            match there {
                Some(value) => out.push_str(&value),
                None => out.push_str(&self.run(default, depth + 1)?),
            }
        } else if let Some(other) = given('+') {
            if there.is_some() {
                out.push_str(&self.run(other, depth + 1)?);
            }
        } else if let Some(message) = given('?') {
            match there {
                Some(value) => out.push_str(&value),
                None => return Err(format!("variable `{name}` is not set: {message}")),
            }
        } else {
            return Err(format!(
                "{} is not understood; expected `${{NAME}}`, `${{NAME:-else}}`, `${{NAME:+then}}` or `${{NAME:?why}}`",
                shown()
            ));
        }
        Ok(rest)
    }
}

/// Where the brace is that closes, whatever stands in between.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => open += 1,
            '}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(word: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(word, &lookup)
    }

    #[test]
    fn variables_have_the_forms_of_a_shell() {
        for (word, expected) in [
            ("$A", "1"),
            ("${A}b", "1b"),
            ("$A$B.", "1."),
            ("${B:-x$A}", "x1"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY-x}", ""),
            ("${A:+y}", "y"),
            ("${EMPTY:+y}", ""),
            ("${B:-${C:-deep}}", "deep"),
            (r"\$A", "$A"),
            ("'$A'", "$A"),
            (r#""$A \"q\" \n""#, r#"1 "q" \n"#),
            ("a$", "a$"),
            ("$1", "$1"),
            ("a\\ b", "a b"),
        ] {
            assert_eq!(of(word).unwrap(), expected, "{word}");
        }
        for word in ["${A", "${}", "${A#x}", "${B:?needed}", "'x", "\"x", "${A:}"] {
            assert!(of(word).is_err(), "{word}");
        }
        assert_eq!(expand_text("\"$A\" '$A' \\$A", &|_| Some("1".to_owned())).unwrap(), "\"1\" '1' $A");
    }

    #[test]
    fn words_end_at_blanks_that_are_not_quoted() {
        assert_eq!(split(r#"a "b c" d\ e 'f g'h"#).unwrap(), ["a", r#""b c""#, r"d\ e", "'f g'h"]);
        assert!(split("a \"b").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_word_is_too_strange(word in "[ -~é]{0,60}") {
            let _ = split(&word).map(|words| words.iter().map(|word| of(word)).collect::<Vec<_>>());
            let _ = expand_text(&word, &|_| Some("x".to_owned()));
        }
    }
}
