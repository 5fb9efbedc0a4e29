//! The server name in the first bytes that a TLS client sends (RFC 8446 section 4.1.2, RFC 6066 section 3).

/// The most bytes that are looked at.
pub const LIMIT: usize = 64 * 1024;

/// What the first bytes of a client are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Too few to tell.
    More,
    /// Not the beginning of TLS.
    Other,
    /// TLS, for this server, in lower case; `None` if the client does not say for which.
    Tls(Option<String>),
}

/// Reads the first bytes of a client.
pub fn read(bytes: &[u8]) -> Hello {
    // Handshake records (type 22) of version 3.x, until they hold a whole ClientHello.
    let mut handshake = Vec::new();
    let mut rest = Cursor(bytes);
    loop {
        match rest.0 {
            [] | [22] => return Hello::More,
            [22, 3, ..] => {}
            // What begins as TLS and goes on as something else is nobody's client.
            _ if handshake.is_empty() => return Hello::Other,
            _ => return Hello::Tls(None),
        }
        let Some(record) = rest.skip(3).and_then(|()| rest.vector(2)) else { return Hello::More };
        handshake.extend_from_slice(record);
        let mut message = Cursor(&handshake);
        match message.0.first() {
            None => continue,
            Some(1) => {}
            Some(_) => return Hello::Tls(None),
        }
        let whole = message.skip(1).and_then(|()| message.vector(3));
        if let Some(hello) = whole {
            return Hello::Tls(server_name(hello));
        }
        if handshake.len() > LIMIT {
            return Hello::Tls(None);
        }
    }
}

fn server_name(hello: &[u8]) -> Option<String> {
    let mut hello = Cursor(hello);
    hello.skip(2 + 32)?; // version, random
    hello.vector(1)?; // session
    hello.vector(2)?; // cipher suites
    hello.vector(1)?; // compression methods
    let mut extensions = Cursor(hello.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let body = extensions.vector(2)?;
        if kind == 0 {
            let mut names = Cursor(Cursor(body).vector(2)?);
            while !names.0.is_empty() {
                let kind = names.number(1)?;
                let name = names.vector(2)?;
                if kind == 0 {
                    return std::str::from_utf8(name).ok().map(str::to_ascii_lowercase);
                }
            }
        }
    }
    None
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    fn number(&mut self, width: usize) -> Option<usize> {
        let bytes = self.0.get(..width)?;
        self.skip(width)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Bytes behind their length, which has `width` bytes.
    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let mut ahead = Cursor(self.0);
        let length = ahead.number(width)?;
        let bytes = ahead.0.get(..length)?;
        ahead.skip(length)?;
        self.0 = ahead.0;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn vector(width: usize, bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len().to_be_bytes();
        [&length[length.len() - width..], bytes].concat()
    }

    /// A ClientHello; with `piece` it is cut into records of that many bytes.
    fn hello(name: Option<&str>, piece: usize) -> Vec<u8> {
        let mut extensions = [vec![0, 10], vector(2, &[0, 2, 0, 29])].concat();
        if let Some(name) = name {
            let entry = [vec![0], vector(2, name.as_bytes())].concat();
            extensions.extend([vec![0, 0], vector(2, &vector(2, &entry))].concat());
        }
        let body = [
            vec![3, 3],
            vec![7; 32],
            vector(1, &[1; 32]),
            vector(2, &[0x13, 1]),
            vector(1, &[0]),
            vector(2, &extensions),
        ]
        .concat();
        let message = [vec![1], vector(3, &body)].concat();
        message.chunks(piece).flat_map(|part| [vec![22, 3, 1], vector(2, part)].concat()).collect()
    }

    #[test]
    fn the_name_is_found_however_it_is_cut() {
        for piece in [1, 5, 40, 16384] {
            let bytes = hello(Some("API.example.com"), piece);
            assert_eq!(read(&bytes), Hello::Tls(Some("api.example.com".into())), "{piece}");
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Hello::More, "{piece} {end}");
            }
        }
        assert_eq!(read(&hello(None, 16384)), Hello::Tls(None));
    }

    #[test]
    fn other_protocols_are_not_tls() {
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Hello::Other);
        assert_eq!(read(b"SSH-2.0-x"), Hello::Other);
        assert_eq!(read(&[22, 9, 1, 0]), Hello::Other);
        assert_eq!(read(&[22, 3, 1, 0, 1, 2]), Hello::Tls(None), "a handshake that is no hello");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), at in 0usize..100, value: u8) {
            let _ = read(&bytes);
            let mut hello = hello(Some("a.b"), 50);
            let at = at.min(hello.len() - 1);
            hello[at] = value;
            let _ = read(&hello);
            bytes.splice(0..0, [22, 3, 1]);
            let _ = read(&bytes);
        }
    }
}
