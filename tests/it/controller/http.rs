//! A small HTTP server of the test's own: receivers of news, and git's own smart HTTP.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What somebody asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// A header, by its name in lowercase.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What it is answered: a whole HTTP answer without its first line's version, or nothing at all.
pub enum Answer {
    Status(u16, Vec<u8>),
    /// The output of a CGI program.
    Cgi(Vec<u8>),
    /// The connection is held until the server ends.
    Never,
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// A server that ends when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
        Server::listen(TcpListener::bind("127.0.0.1:0").unwrap(), None, handler)
    }

    /// One that speaks TLS, with the certificate of `tests/it/tls` for `localhost`.
    pub fn start_tls(
        listener: TcpListener,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Server {
        Server::listen(listener, Some(crate::http::tls_config()), handler)
    }

    fn listen(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Server {
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let over: Arc<AtomicBool> = Arc::default();
        let (seen, stop, handler): (_, _, Arc<Handler>) = (requests.clone(), over.clone(), Arc::new(handler));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let (seen, stop, handler) = (seen.clone(), stop.clone(), handler.clone());
                let tls = tls.clone();
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                    // A client that goes away, or does not trust it, is no problem of the server.
                    let _ = match tls {
                        None => serve(stream, &seen, &stop, handler.as_ref()),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            let stream = rustls::StreamOwned::new(connection, stream);
                            serve(stream, &seen, &stop, handler.as_ref())
                        }
                    };
                });
            }
        });
        Server { address, requests, over, thread: Some(thread) }
    }

    /// Git's smart HTTP of the repositories in `root`; for those who give these credentials, if any are wanted.
    pub fn git(root: &Path, credentials: Option<&'static str>) -> Server {
        let root = root.to_owned();
        let program = Command::new("git").arg("--exec-path").output().unwrap();
        let program = Path::new(String::from_utf8(program.stdout).unwrap().trim()).join("git-http-backend");
        Server::start(move |request| {
            use base64::Engine as _;
            let wanted = credentials
                .map(|pair| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)));
            if wanted.is_some_and(|wanted| request.header("authorization") != wanted) {
                let answer = b"Status: 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\n\r\nno\n";
                return Answer::Cgi(answer.to_vec());
            }
            let mut child = Command::new(&program)
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("GIT_PROJECT_ROOT", &root)
                .env("GIT_HTTP_EXPORT_ALL", "1")
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .env("GIT_PROTOCOL", request.header("git-protocol"))
                .env("REQUEST_METHOD", &request.method)
                .env("PATH_INFO", &request.path)
                .env("QUERY_STRING", &request.query)
                .env("CONTENT_TYPE", request.header("content-type"))
                .env("CONTENT_LENGTH", request.body.len().to_string())
                .env("HTTP_CONTENT_ENCODING", request.header("content-encoding"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // What git asks for here is far smaller than a pipe.
            let _ = child.stdin.take().unwrap().write_all(&request.body);
            Answer::Cgi(child.wait_with_output().unwrap().stdout)
        })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Everything that was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until what was asked is so; returns it.
    #[track_caller]
    pub fn until(&self, what: &str, holds: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let requests = self.requests();
            if holds(&requests) {
                return requests;
            }
            let texts: Vec<_> =
                requests.iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
            assert!(Instant::now() < deadline, "{what}: {requests:?} {texts:#?}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    stream: impl Read + Write,
    seen: &Mutex<Vec<Request>>,
    over: &AtomicBool,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        request.headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length: u64 = request.header("content-length").parse().unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut request.body)?;
    let answer = handler(&request);
    seen.lock().unwrap().push(request);
    let mut stream = reader.into_inner();
    match answer {
        Answer::Status(code, body) => {
            let length = body.len();
            write!(stream, "HTTP/1.1 {code} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")?;
            stream.write_all(&body)?;
            stream.flush()
        }
        Answer::Cgi(output) => {
            let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(output.len());
            let (head, body) = output.split_at(end);
            let head = String::from_utf8_lossy(head);
            let status = head.lines().find_map(|l| l.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
            let rest: String =
                head.lines().filter(|l| !l.starts_with("Status: ")).map(|l| format!("{l}\r\n")).collect();
            let body = body.get(4..).unwrap_or_default();
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{rest}\r\n"
            )?;
            stream.write_all(body)?;
            stream.flush()
        }
        Answer::Never => {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
    }
}
