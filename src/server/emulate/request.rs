//! What a request says, for every emulator.

use std::net::IpAddr;

use axum::extract::Request;

/// Whether a host name cannot be that of a page that a browser of this machine has open.
pub(super) fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // A colon more is of an IPv6 address, which has a port only behind brackets.
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    };
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.ends_with(".localhost") || literal.parse::<IpAddr>().is_ok()
}

/// The port and the sandbox that a host name `PORT-ID.…` is for.
pub(super) fn port_of(host: &str) -> Option<(String, u16)> {
    let (port, rest) = host.split_once('-')?;
    let (id, _) = rest.split_once('.')?;
    Some((id.to_owned(), port.parse().ok()?))
}

/// Undoes percent-encoding; what is none stays as it is.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The parameters of a query.
pub(super) fn parameters(request: &Request) -> Vec<(String, String)> {
    pairs(request.uri().query().unwrap_or_default())
}

pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

pub(super) fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_browser_is_not_local() {
        for host in ["localhost", "localhost:80", "3000-i.localhost:80", "127.0.0.1:80", "[::1]:80", "::1"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(decoded("a%20b+c%2"), "a b c%2");
        assert_eq!(
            pairs("a=1&b=%26&c"),
            [("a", "1"), ("b", "&"), ("c", "")].map(|(n, v)| (n.into(), v.into()))
        );
    }
}
