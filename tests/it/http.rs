//! The one HTTP layer against a server that does what it should not: what each answer means, what is bounded, and what never shows.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pocketenv::provider::ProviderError;
use pocketenv::provider::http::Http;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// What the server does with a connection, one after the other.
#[derive(Clone)]
enum Act {
    Send(Vec<u8>),
    Wait(Duration),
    /// Sends so many bytes, as fast as they go.
    Flood(usize),
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<Act> {
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
    vec![Act::Send(text.into_bytes())]
}

/// A server that does the same with every request, and keeps what it was sent; its port.
async fn serve(acts: Vec<Act>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, acts.clone(), Arc::clone(&kept)));
        }
    });
    (port, requests)
}

async fn connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    acts: Vec<Act>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(n @ 1..) => request.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
    requests.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
    for act in acts {
        let sent = match act {
            Act::Send(bytes) => stream.write_all(&bytes).await,
            Act::Wait(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Act::Flood(bytes) => {
                let chunk = vec![b' '; 1 << 20];
                let mut sent = Ok(());
                for _ in 0..bytes >> 20 {
                    sent = stream.write_all(&chunk).await;
                    if sent.is_err() {
                        break;
                    }
                }
                sent
            }
        };
        if sent.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

fn message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body["message"].as_str().map(str::to_owned)
}

fn http(port: u16) -> Http {
    Http::new(&format!("http://127.0.0.1:{port}"), message).unwrap()
}

async fn ask(port: u16) -> Result<Value, ProviderError> {
    http(port).call(Method::GET, &["thing"]).timeout(Duration::from_secs(20)).read("look").await
}

#[tokio::test]
async fn every_status_says_what_to_do() {
    let kind = async |status: &str, headers: &str| {
        let (port, _) = serve(answer(status, headers, r#"{"message":"the vendor says so"}"#)).await;
        let error = ask(port).await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains("the vendor says so") || status.starts_with("429"), "{told}");
        error
    };
    for status in ["401 Unauthorized", "403 Forbidden"] {
        assert!(matches!(kind(status, "").await, ProviderError::Unauthorised { .. }), "{status}");
    }
    for status in ["404 Not Found", "410 Gone"] {
        assert!(matches!(kind(status, "").await, ProviderError::NotFound { .. }), "{status}");
    }
    assert!(matches!(kind("409 Conflict", "").await, ProviderError::AlreadyExists { .. }));
    for status in ["400 Bad Request", "413 Too Large", "422 Unprocessable"] {
        assert!(matches!(kind(status, "").await, ProviderError::Invalid { .. }), "{status}");
    }
    for status in ["500 Error", "502 Bad Gateway", "503 Unavailable", "504 Timeout", "408 Timeout"] {
        let error = kind(status, "").await;
        assert!(matches!(error, ProviderError::Transient { .. }) && error.is_retryable(), "{status}");
    }
    assert!(matches!(kind("501 Not Implemented", "").await, ProviderError::Unsupported { .. }));
    let dated = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:49 GMT\r\n";
    for (headers, seconds) in [("", None), ("retry-after: 7\r\n", Some(7)), (dated, Some(12))] {
        match kind("429 Too Many Requests", headers).await {
            ProviderError::Throttled { retry_after } => {
                assert_eq!(retry_after, seconds.map(Duration::from_secs), "{headers}");
            }
            other => panic!("{other:?}"),
        }
    }
    // A redirection would take the credentials elsewhere.
    let redirected = kind("302 Found", "location: http://127.0.0.1:1/\r\n").await;
    assert!(matches!(redirected, ProviderError::Permanent { .. }) && !redirected.is_retryable());
}

#[tokio::test]
async fn what_is_slow_or_cut_is_tried_again_and_what_is_endless_is_not() {
    let fails = async |acts: Vec<Act>| {
        let (port, _) = serve(acts).await;
        let begun = Instant::now();
        let call = http(port);
        let call = call.call(Method::GET, &["thing"]).timeout(Duration::from_secs(2));
        let error = call.read::<Value>("look").await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(15), "{error}");
        error
    };
    let send = |text: &str| Act::Send(text.as_bytes().to_vec());
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n";
    let long = Act::Wait(Duration::from_secs(60));
    for (what, acts) in [
        ("no answer", vec![long.clone()]),
        ("half a head", vec![send("HTTP/1.1 200 OK\r\ncont"), long.clone()]),
        ("a head and no body", vec![send(whole), long.clone()]),
        ("half a body", vec![send(whole), send("{\"a\":"), long]),
        ("cut before the answer", vec![]),
        ("cut in the head", vec![send("HTTP/1.1 200 OK\r\ncont")]),
        ("cut in the body", vec![send(whole), send("{\"a\": 1}")]),
        ("cut in a chunked body", vec![send(chunked)]),
    ] {
        let error = fails(acts).await;
        assert!(matches!(error, ProviderError::Transient { .. }), "{what}: {error:?}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert!(matches!(ask(closed).await, Err(ProviderError::Transient { .. })));
    let (port, _) = serve(vec![send("HTTP/1.1 200 OK\r\n\r\n"), Act::Flood(70 << 20)]).await;
    let endless = ask(port).await.unwrap_err();
    assert!(matches!(endless, ProviderError::Permanent { .. }), "{endless:?}");
    let (port, _) = serve(answer("200 OK", "", "<html>")).await;
    assert!(matches!(ask(port).await, Err(ProviderError::Permanent { .. })));
}

/// Where a log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_credential_never_shows() {
    const KEY: &str = "hunter2-the-key";
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let echo = json!({ "message": format!("the key {KEY} is not good") }).to_string();
    let (port, requests) = serve(answer("401 Unauthorized", "", &echo)).await;
    let http = http(port).secret_header("authorization", &format!("Bearer {KEY}")).unwrap();
    let call = http.call(Method::POST, &["keys"]).query(&[("token", KEY)]).json(&json!({ "key": KEY }));
    let error = call.done("sign in").await.unwrap_err();
    let (port, _) = serve(vec![]).await;
    let cut = Http::new(&format!("http://127.0.0.1:{port}"), message).unwrap();
    let cut = cut.call(Method::GET, &["keys"]).query(&[("token", KEY)]).done("sign in").await.unwrap_err();
    assert!(requests.lock().unwrap()[0].contains(&format!("Bearer {KEY}")), "it was not even sent");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("sign in") && log.contains("401"), "nothing was logged: {log}");
    let mut causes = String::new();
    let mut source = std::error::Error::source(&cut);
    while let Some(cause) = source {
        causes += &format!("{cause} {cause:?}");
        source = cause.source();
    }
    for text in [&log, &format!("{error} {error:?} {cut} {cut:?} {causes}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let refused =
        match Http::new("http://127.0.0.1:1", message).unwrap().secret_header("authorization", "hunter2\n") {
            Err(error) => error.to_string(),
            Ok(_) => panic!("a header of two lines was taken"),
        };
    assert!(!refused.contains("hunter2"), "{refused}");
}

/// `provider test sim` with an address and these variables; how it ended and what it said.
async fn program(url: &str, vars: &[(&str, &str)]) -> (i32, String) {
    let home = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pocketenv"));
    command
        .args(["provider", "test", "sim", "--case", "errors/unknown"])
        .current_dir(home.path())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("POCKETENV_HOME", home.path())
        .env("POCKETENV_SIM_URL", url)
        .envs(vars.iter().copied())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn calls_go_through_the_proxy_of_the_environment() {
    let (port, requests) = serve(answer("401 Unauthorized", "", "{}")).await;
    let proxy = format!("http://127.0.0.1:{port}");
    let (code, told) = program("http://cloud.invalid/base", &[("http_proxy", &proxy)]).await;
    assert_eq!(code, 7, "{told}");
    let seen = requests.lock().unwrap().clone();
    assert!(seen[0].starts_with("GET http://cloud.invalid/base/v1/capabilities HTTP/1.1\r\n"), "{seen:?}");
    // What is on this machine is not asked for at a proxy.
    let (own, asked) = serve(answer("401 Unauthorized", "", "{}")).await;
    let (code, told) =
        program(&format!("http://127.0.0.1:{own}"), &[("http_proxy", "http://127.0.0.1:1")]).await;
    assert_eq!((code, asked.lock().unwrap().len()), (7, 1), "{told}");
}

/// A file of the certificates made for these tests: an authority, another one that signed nothing, and a server `localhost` of the first.
pub fn tls(file: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls").join(file)
}

/// A server with that certificate.
pub fn tls_config() -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificates = CertificateDer::pem_file_iter(tls("server.pem")).unwrap();
    let certificates = certificates.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(tls("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    Arc::new(config)
}

#[tokio::test]
async fn a_certificate_has_to_be_of_an_authority_that_is_trusted() {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls_config());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    connection(stream, answer("401 Unauthorized", "", "{}"), Arc::default()).await;
                }
            });
        }
    });
    let url = format!("https://localhost:{port}");
    let trusted = tls("ca.pem");
    let (code, told) = program(&url, &[("SSL_CERT_FILE", trusted.to_str().unwrap())]).await;
    assert_eq!(code, 7, "{told}");
    let http = Http::new(&url, message).unwrap();
    let error = http.call(Method::GET, &["thing"]).done("look").await.unwrap_err();
    assert!(matches!(error, ProviderError::Transient { .. } | ProviderError::Permanent { .. }), "{error:?}");
}
