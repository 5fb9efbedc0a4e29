//! Files of `KEY=VALUE` lines.

use std::collections::BTreeMap;

use super::language::scalar::env_name;

/// Reads the lines. `#` begins a comment at the start of a line or after a space; `export ` is ignored; a value may stand in single
/// quotes (as it is) or double quotes (`\n`, `\t`, `\"`, `\\` understood), also over several lines. Nothing is expanded.
/// `Err` has the line, from 1, and what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut values = BTreeMap::new();
    let mut lines = text.split('\n').enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = number + 1;
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (key, rest) = line.split_once('=').ok_or((at, "there is no `=`".to_owned()))?;
        let key = key.trim_end();
        env_name(key).map_err(|why| (at, format!("{} {why}", super::node::quote(key))))?;
        let rest = rest.trim_start();
        let value = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let mut raw = rest.get(1..).unwrap_or("").to_owned();
                loop {
                    if let Some((value, after)) = unquote(&raw, quote) {
                        let after = after.trim_start();
                        if !after.is_empty() && !after.starts_with('#') {
                            return Err((at, "something stands after the closing quote".to_owned()));
                        }
                        break value;
                    }
                    match lines.next() {
                        Some((_, next)) => {
                            raw.push('\n');
                            raw.push_str(next.strip_suffix('\r').unwrap_or(next));
                        }
                        None => return Err((at, "the quote is never closed".to_owned())),
                    }
                }
            }
            _ => {
                let end = rest.find(" #").unwrap_or(rest.len());
                rest.get(..end).unwrap_or(rest).trim_end().to_owned()
            }
        };
        if value.contains('\0') {
            return Err((at, "there is a NUL character".to_owned()));
        }
        values.insert(key.to_owned(), value);
    }
    Ok(values)
}

/// The text up to the closing quote, and what follows it; `None` if it is not closed.
fn unquote(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((out, text.get(at + c.len_utf8()..).unwrap_or(""))),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                c @ ('"' | '\\' | '$' | '\'') => out.push(c),
                c => out.extend(['\\', c]),
            },
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        let text = "# note\nA=1\r\nexport B = two words # note\nC=\"x\\ny # z\"\nD='a\nb'\nE=\nF=a#b\n";
        let values = parse(text).unwrap();
        let get = |k: &str| values.get(k).map(String::as_str);
        assert_eq!(get("A"), Some("1"));
        assert_eq!(get("B"), Some("two words"));
        assert_eq!(get("C"), Some("x\ny # z"));
        assert_eq!(get("D"), Some("a\nb"));
        assert_eq!(get("E"), Some(""));
        assert_eq!(get("F"), Some("a#b"));
    }

    #[test]
    fn says_which_line_is_wrong() {
        assert_eq!(parse("A=1\nnope\n").unwrap_err().0, 2);
        assert_eq!(parse("A=\"x\n\n").unwrap_err().0, 1);
        assert_eq!(parse("1A=x").unwrap_err().0, 1);
    }
}
