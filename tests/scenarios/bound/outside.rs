//! The outside as a test makes it: the proxy of a company, behind which every name is one server, with TLS and without.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The name by which the server was asked for, and how: `https://api.example.invalid`.
    pub of: String,
    /// Everything up to the empty line.
    pub head: String,
    /// The body.
    pub body: String,
}

/// The outside.
pub struct Outside {
    /// Where its proxy is.
    pub proxy: SocketAddr,
    /// The authority that its servers are signed by.
    pub authority: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Outside {
    pub fn new() -> Outside {
        let key = || rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let own = key();
        let authority = params.self_signed(&own).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, own);
        let names = ["*.example.invalid", "*.wild.example.invalid"].map(str::to_owned);
        let params = rcgen::CertificateParams::new(names).unwrap();
        let (good, bad) = (key(), key());
        let signed = config(params.signed_by(&good, &issuer).unwrap().into(), &good);
        let unsigned = config(params.self_signed(&bad).unwrap().into(), &bad);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (signed, unsigned, kept) = (signed.clone(), unsigned.clone(), Arc::clone(&kept));
                std::thread::spawn(move || stream.ok().and_then(|s| client(s, &signed, &unsigned, &kept)));
            }
        });
        Outside { proxy, authority, seen }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests whose head has this in it.
    pub fn with(&self, text: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.head.contains(text)).collect()
    }
}

fn config(certificate: CertificateDer<'static>, key: &rcgen::KeyPair) -> Arc<rustls::ServerConfig> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap())
}

fn client(
    mut stream: TcpStream,
    signed: &Arc<rustls::ServerConfig>,
    unsigned: &Arc<rustls::ServerConfig>,
    seen: &Mutex<Vec<Seen>>,
) -> Option<()> {
    let head = head(&mut stream)?;
    let target = head.split(' ').nth(1)?.to_owned();
    if !head.starts_with("CONNECT ") {
        let of = format!("http://{}", target.strip_prefix("http://")?.split('/').next()?);
        seen.lock().unwrap().push(Seen { of, head, body: String::new() });
        return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").ok();
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let config = if target.starts_with("bad.") { unsigned } else { signed };
    let connection = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, stream);
    loop {
        let head = self::head(&mut tls)?;
        let of = format!("https://{}", tls.conn.server_name()?);
        let body = body(&mut tls, &head)?;
        seen.lock().unwrap().push(Seen { of, head: head.clone(), body });
        let path = head.split(' ').nth(1)?;
        let authorized = head.to_ascii_lowercase().contains("\r\nauthorization:");
        let answer = match path {
            "/ws" => {
                let answer =
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                tls.write_all(answer.as_bytes()).ok()?;
                let mut said = [0; 4];
                tls.read_exact(&mut said).ok()?;
                tls.write_all(&said).ok()?;
                return tls.flush().ok();
            }
            "/redirect" => {
                "HTTP/1.1 302 Found\r\nLocation: https://other.example.invalid/redirected\r\nContent-Length: 0\r\n\r\n"
            }
            path if path.contains("info/refs") && !authorized => {
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"
            }
            _ if head.starts_with("HEAD ") => "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        tls.write_all(answer.as_bytes()).ok()?;
        tls.flush().ok()?;
    }
}

fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// A body, by the framing of a server that believes in chunks first.
fn body(stream: &mut impl Read, head: &str) -> Option<String> {
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .next()
    };
    let mut exactly = |length: usize| {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let mut body = Vec::new();
    if field("transfer-encoding").is_some() {
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(exactly(1)?);
            }
            let length = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
            body.extend(exactly(length)?);
            exactly(2)?;
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = field("content-length") {
        body = exactly(length.parse().ok()?)?;
    }
    String::from_utf8(body).ok()
}
