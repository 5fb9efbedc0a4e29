//! Redaction: takes secret values out of whatever is shown, logged or recorded, in the forms they usually travel in.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use secrecy::zeroize::Zeroizing;

use super::SecretValue;

/// Values shorter than this are not searched for: they would be found everywhere.
const MIN_VALUE: usize = 4;

/// Lines of a value of several lines are searched for on their own from this length: output is shown line by line.
const MIN_LINE: usize = 8;

/// Base64 inside longer base64 is searched for from this length.
const MIN_INSIDE: usize = 6;

/// Replaces the values of secrets by `[secret NAME]`: as they are, and in base64, percent-encoded and JSON-escaped form.
pub struct Redactor {
    /// What is searched for, by its first two bytes, longest first.
    needles: HashMap<[u8; 2], Vec<Needle>>,
    /// Which first bytes there are: most text is passed over by this alone.
    starts: [bool; 256],
}

struct Needle {
    bytes: Zeroizing<Vec<u8>>,
    replacement: Arc<str>,
}

impl Redactor {
    /// A redactor of these secrets.
    pub fn new<'a>(secrets: impl IntoIterator<Item = (&'a str, &'a SecretValue)>) -> Self {
        let mut redactor = Self { needles: HashMap::new(), starts: [false; 256] };
        for (name, value) in secrets {
            let replacement: Arc<str> = format!("[secret {name}]").into();
            for form in forms(value.expose()) {
                // Every form has at least four bytes.
                let start = [form[0], form[1]];
                redactor.starts[usize::from(start[0])] = true;
                let needle = Needle { bytes: Zeroizing::new(form), replacement: replacement.clone() };
                redactor.needles.entry(start).or_default().push(needle);
            }
        }
        for needles in redactor.needles.values_mut() {
            needles.sort_by_key(|needle| std::cmp::Reverse(needle.bytes.len()));
        }
        redactor
    }

    /// The text without secrets.
    pub fn redact(&self, text: &str) -> String {
        let mut out = Vec::with_capacity(text.len());
        self.scan(text.as_bytes(), true, &mut out);
        // Values and their forms are text, so what is left between them is text too.
        String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// For output that comes in chunks: a secret may lie across two of them.
    pub fn stream(self: &Arc<Self>) -> RedactStream {
        RedactStream { redactor: self.clone(), held: Zeroizing::default() }
    }

    /// Writes `input` without secrets to `out`; returns how much of it is settled. Unless it is the `last`, what may be the
    /// beginning of a secret is not. The leftmost secret wins, and of those that start there the longest.
    fn scan(&self, input: &[u8], last: bool, out: &mut Vec<u8>) -> usize {
        let mut written = 0;
        let mut at = 0;
        while at < input.len() {
            match self.look(&input[at..], last) {
                Look::Nothing => at += 1,
                Look::Secret(needle) => {
                    out.extend_from_slice(&input[written..at]);
                    out.extend_from_slice(needle.replacement.as_bytes());
                    at += needle.bytes.len();
                    written = at;
                }
                Look::Undecided => break,
            }
        }
        out.extend_from_slice(&input[written..at]);
        at
    }

    /// What starts here.
    fn look(&self, rest: &[u8], last: bool) -> Look<'_> {
        if !self.starts[usize::from(rest[0])] {
            return Look::Nothing;
        }
        let Some(start) = rest.first_chunk::<2>() else {
            return if last { Look::Nothing } else { Look::Undecided };
        };
        for needle in self.needles.get(start).into_iter().flatten() {
            if rest.starts_with(&needle.bytes) {
                return Look::Secret(needle);
            }
            if !last && needle.bytes.starts_with(rest) {
                return Look::Undecided;
            }
        }
        Look::Nothing
    }
}

enum Look<'a> {
    Nothing,
    Secret(&'a Needle),
    Undecided,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

/// A redactor of one stream of chunks. It holds back only what may be the beginning of a secret.
pub struct RedactStream {
    redactor: Arc<Redactor>,
    held: Zeroizing<Vec<u8>>,
}

impl RedactStream {
    /// Takes a chunk; returns what can be shown now.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len() + chunk.len());
        if self.held.is_empty() {
            let settled = self.redactor.scan(chunk, false, &mut out);
            self.held.extend_from_slice(&chunk[settled..]);
        } else {
            self.held.extend_from_slice(chunk);
            let settled = self.redactor.scan(&self.held, false, &mut out);
            self.held.drain(..settled);
        }
        out
    }

    /// The stream has ended; returns what is left.
    pub fn finish(mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len());
        self.redactor.scan(&held, true, &mut out);
        out
    }
}

/// Every form of a value that is searched for, each of at least [`MIN_VALUE`] bytes.
fn forms(value: &str) -> BTreeSet<Vec<u8>> {
    let lines = value.lines().map(str::trim).filter(|line| line.len() >= MIN_LINE);
    let mut forms = BTreeSet::new();
    for text in [value, value.trim()].into_iter().chain(lines) {
        if text.len() >= MIN_VALUE {
            forms.insert(text.as_bytes().to_vec());
            forms.extend(base64_forms(text.as_bytes()));
            forms.extend(percent_forms(text).map(String::into_bytes));
            forms.extend(json_forms(text).map(String::into_bytes));
        }
    }
    forms
}

/// The value encoded alone, with and without padding, and inside something longer, where it can start at each of three places.
fn base64_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for engine in [STANDARD, URL_SAFE] {
        let alone = engine.encode(value);
        forms.push(alone.trim_end_matches('=').as_bytes().to_vec());
        forms.push(alone.into_bytes());
        for before in 0..3 {
            let mut longer = Zeroizing::new(vec![0; before]);
            longer.extend_from_slice(value);
            // The characters that hold bits of the value only: six bits each.
            let (from, to) = ((before * 8).div_ceil(6), longer.len() * 8 / 6);
            let encoded = engine.encode(&*longer);
            forms.extend(
                encoded.as_bytes().get(from..to).filter(|form| form.len() >= MIN_INSIDE).map(<[u8]>::to_vec),
            );
        }
    }
    forms
}

/// As URLs and forms have it: encoders differ in what they leave as it is, in the case of digits, and in the space.
fn percent_forms(value: &str) -> impl Iterator<Item = String> {
    let encode = |kept: &[u8], lower: bool, plus: bool| {
        let mut out = String::with_capacity(value.len() * 3);
        for &byte in value.as_bytes() {
            // Writing to a string cannot fail.
            let _ = match byte {
                b' ' if plus => out.write_char('+'),
                _ if byte.is_ascii_alphanumeric() || kept.contains(&byte) => out.write_char(char::from(byte)),
                _ if lower => write!(out, "%{byte:02x}"),
                _ => write!(out, "%{byte:02X}"),
            };
        }
        out
    };
    let kept: [&[u8]; 3] = [b"-._~", b"-._~!'()*", b"-._~/"];
    let mut forms = Vec::new();
    for kept in kept {
        for (lower, plus) in [(false, false), (false, true), (true, false), (true, true)] {
            forms.push(encode(kept, lower, plus));
        }
    }
    forms.into_iter()
}

/// As JSON strings have it: plainly, with everything beyond ASCII escaped, and safe for HTML.
fn json_forms(value: &str) -> impl Iterator<Item = String> {
    let encode = |escape: fn(char) -> bool| {
        let mut out = String::with_capacity(value.len() + 16);
        for c in value.chars() {
            let _ = match c {
                '"' | '\\' => write!(out, "\\{c}"),
                '\n' => out.write_str("\\n"),
                '\r' => out.write_str("\\r"),
                '\t' => out.write_str("\\t"),
                '\u{8}' => out.write_str("\\b"),
                '\u{c}' => out.write_str("\\f"),
                _ if c < ' ' || escape(c) => {
                    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                _ => out.write_char(c),
            };
        }
        out
    };
    let html = |c| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    [encode(|_| false), encode(|c| !c.is_ascii()), encode(html)].into_iter()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor(secrets: &[(&str, &str)]) -> Arc<Redactor> {
        let values: Vec<_> = secrets.iter().map(|(name, value)| (*name, SecretValue::new(*value))).collect();
        Arc::new(Redactor::new(values.iter().map(|(name, value)| (*name, value))))
    }

    #[test]
    fn every_form_of_a_value_is_replaced() {
        let value = "p@ss \"wörd\"/<1>!\n";
        let redactor = redactor(&[("DB", value)]);
        let json = serde_json::to_string(value).unwrap();
        let forms = [
            value.to_owned(),
            STANDARD.encode(value),
            URL_SAFE.encode(value).trim_end_matches('=').to_owned(),
            "p%40ss%20%22w%C3%B6rd%22%2F%3C1%3E%21%0A".to_owned(),
            "p%40ss+%22w%c3%b6rd%22%2f%3c1%3e%21%0a".to_owned(),
            json[1..json.len() - 1].to_owned(),
            "p@ss \\\"w\\u00f6rd\\\"/<1>!\\n".to_owned(),
            "p@ss \\\"wörd\\\"/\\u003c1\\u003e!\\n".to_owned(),
        ];
        for form in forms {
            assert_eq!(redactor.redact(&format!("a {form} z")), "a [secret DB] z", "{form}");
        }
    }

    #[test]
    fn base64_of_something_longer_is_found_too() {
        let redactor = redactor(&[("PW", "correct horse battery")]);
        for user in ["a", "ab", "abc", "abcd"] {
            let header = STANDARD.encode(format!("{user}:correct horse battery!"));
            let shown = redactor.redact(&format!("Authorization: Basic {header}"));
            assert!(shown.contains("[secret PW]"), "{shown}");
            let rest = shown.replace("[secret PW]", "").replace("Authorization: Basic ", "");
            assert!(rest.len() <= header.len() - 26, "too much is left: {shown}");
        }
    }

    #[test]
    fn the_longest_wins_lines_count_and_short_values_do_not() {
        let redactor = redactor(&[
            ("SHORT", "abc"),
            ("A", "token"),
            ("B", "token-long"),
            ("KEY", "-----BEGIN-----\nMIIEvQIBADANBg\nq\n"),
        ]);
        assert_eq!(redactor.redact("abc token token-long tok"), "abc [secret A] [secret B] tok");
        assert_eq!(redactor.redact("web | MIIEvQIBADANBg\nweb | q"), "web | [secret KEY]\nweb | q");
        assert_eq!(format!("{redactor:?}"), "Redactor");
    }

    #[test]
    fn a_stream_holds_back_only_what_may_be_a_secret() {
        let redactor = redactor(&[("A", "hunter2")]);
        let mut stream = redactor.stream();
        assert_eq!(stream.push(b"the hunt"), b"the ");
        assert_eq!(stream.push(b"s hun"), b"hunts ");
        assert_eq!(stream.push(b"ter"), b"");
        assert_eq!(stream.push(b"2!\xff"), b"[secret A]!\xff");
        assert_eq!(stream.push(b"hunter"), b"");
        assert_eq!(stream.finish(), b"hunter");
    }

    proptest! {
        #[test]
        fn chunks_never_change_the_result(
            secrets in proptest::collection::vec("[ab]{4,7}", 1..4),
            text in "[abc]{0,80}",
            cuts in proptest::collection::vec(0usize..80, 0..10),
        ) {
            let named: Vec<_> = secrets.iter().map(|value| ("S", value.as_str())).collect();
            let redactor = redactor(&named);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stream = redactor.stream();
            let mut shown = Vec::new();
            for cut in cuts.windows(2) {
                shown.extend(stream.push(&text.as_bytes()[cut[0]..cut[1]]));
            }
            shown.extend(stream.finish());
            let whole = redactor.redact(&text);
            prop_assert_eq!(String::from_utf8(shown).unwrap(), whole.clone());
            for secret in &secrets {
                prop_assert!(!whole.contains(secret.as_str()));
            }
        }

        #[test]
        fn any_text_is_taken(value in "\\PC{0,40}", text in "\\PC{0,200}") {
            let redactor = redactor(&[("S", value.as_str())]);
            let shown = redactor.redact(&format!("{text}{value}{text}"));
            prop_assert!(value.len() < MIN_VALUE || shown.contains("[secret S]"));
        }
    }
}
