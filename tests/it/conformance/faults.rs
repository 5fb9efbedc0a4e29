//! What providers make of a service that refuses, and of answers that break off or come slowly: a proxy in front of the service does it, for one operation at a time.
//!
//! A provider joins by one [`Row`]; one that speaks to no service has none.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pocketenv::model::{Address, Identity, Image, IntentId, OwnerId, SandboxId, SandboxSpec, labels};
use pocketenv::provider::{Command, GuestError, Owner, Provider, ProviderError, capture};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// The longest head of a request or an answer.
const HEAD: usize = 64 << 10;
/// How long one attempt may take: what hangs is found.
const ATTEMPT: Duration = Duration::from_secs(60);
/// What the proxy says in `Retry-After`.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How much of an answer that comes slowly comes at once, and how long the next waits.
const SLOW_PIECE: usize = 4096;
const SLOW_PAUSE: Duration = Duration::from_millis(5);
const PROJECT: &str = "faults";

/// Where the service is.
#[derive(Clone)]
pub enum Upstream {
    Tcp(String),
    Unix(PathBuf),
}

/// An operation of the service: a method, and how its path ends.
type Operation = (&'static str, &'static str);

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The service never hears of it, and the answer is this status.
    Status(u16),
    /// The service does it; of the answer's body so many bytes arrive.
    Cut(usize),
    /// The service does it; the answer's body arrives a little at a time.
    Slow,
}

/// How a provider's service is spoken to.
pub struct Row {
    pub list: Operation,
    pub create: Operation,
    /// What starts a command; needed where the sheet has processes.
    pub exec: Option<Operation>,
    /// Whether the service says how long to wait.
    pub retry_after: bool,
}

/// What is wrong now, and how often it was.
type Wrong = Arc<Mutex<(Option<(Operation, Fault)>, usize)>>;

/// A proxy of HTTP/1.1 that speaks one request on each connection.
pub struct Proxy {
    pub address: String,
    wrong: Wrong,
}

impl Proxy {
    pub async fn start(upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let wrong = Wrong::default();
        let shared = Arc::clone(&wrong);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (upstream, wrong) = (upstream.clone(), Arc::clone(&shared));
                // A connection that fails is what the client is told of.
                tokio::spawn(async move { connection(client, upstream, wrong).await.ok() });
            }
        });
        Self { address, wrong }
    }

    /// What `attempt` answers while `operation` goes wrong, which it has to meet.
    async fn during<F: Future>(&self, operation: Operation, fault: Fault, attempt: F) -> F::Output {
        *self.wrong.lock().unwrap() = (Some((operation, fault)), 0);
        let answer = tokio::time::timeout(ATTEMPT, attempt).await;
        let (_, met) = std::mem::take(&mut *self.wrong.lock().unwrap());
        let answer = answer.unwrap_or_else(|_| panic!("{operation:?}, {fault:?}: it does not end"));
        assert!(met > 0, "{operation:?}, {fault:?}: the service was not asked for it");
        answer
    }
}

async fn connection(mut client: TcpStream, upstream: Upstream, wrong: Wrong) -> std::io::Result<()> {
    let Some((head, rest)) = head(&mut client).await? else { return Ok(()) };
    let fault = {
        let mut wrong = wrong.lock().unwrap();
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let fault =
            wrong.0.filter(|((m, end), _)| *m == method && path.ends_with(end)).map(|(_, fault)| fault);
        wrong.1 += usize::from(fault.is_some());
        fault
    };
    if let Some(Fault::Status(status)) = fault {
        let body = r#"{"code":0,"message":"so the proxy says"}"#;
        let (length, pause) = (body.len(), RETRY_AFTER.as_secs());
        let answer = format!(
            "HTTP/1.1 {status} Refused\r\nconnection: close\r\nretry-after: {pause}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        client.write_all(answer.as_bytes()).await?;
        client.shutdown().await?;
        // What is still being sent is taken in, or the answer would be lost with the connection.
        return tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop);
    }
    match upstream {
        Upstream::Tcp(address) => {
            relay(client, TcpStream::connect(address).await?, &head, &rest, fault).await
        }
        Upstream::Unix(path) => relay(client, UnixStream::connect(path).await?, &head, &rest, fault).await,
    }
}

async fn relay(
    client: TcpStream,
    service: impl AsyncRead + AsyncWrite,
    request: &str,
    rest: &[u8],
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_service, mut to_service) = tokio::io::split(service);
    let upgrades = request.to_ascii_lowercase().contains("\r\nupgrade:");
    let request = match upgrades {
        true => request.to_owned(),
        false => request.replacen("\r\n", "\r\nconnection: close\r\n", 1),
    };
    to_service.write_all(request.as_bytes()).await?;
    to_service.write_all(rest).await?;
    let there = async {
        tokio::io::copy(&mut from_client, &mut to_service).await?;
        to_service.shutdown().await
    };
    let back = async {
        let Some((answer, rest)) = head(&mut from_service).await? else { return Ok(()) };
        to_client.write_all(answer.as_bytes()).await?;
        let limit = match fault {
            Some(Fault::Cut(bytes)) => bytes as u64,
            _ => u64::MAX,
        };
        let mut body = std::io::Cursor::new(rest).chain(&mut from_service).take(limit);
        if fault == Some(Fault::Slow) {
            let mut buffer = [0; SLOW_PIECE];
            while let read @ 1.. = body.read(&mut buffer).await? {
                to_client.write_all(&buffer[..read]).await?;
                tokio::time::sleep(SLOW_PAUSE).await;
            }
        } else {
            tokio::io::copy(&mut body, &mut to_client).await?;
        }
        to_client.shutdown().await
    };
    tokio::pin!(there, back);
    // The answer decides when it is over.
    tokio::select! {
        answered = &mut back => answered,
        sent = &mut there => { sent?; back.await }
    }
}

/// The head of a message, and what came along of its body; `None` if the connection ends before.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), rest)));
        }
        if bytes.len() > HEAD || from.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// An identity whose token no other run had: a service may remember it.
fn identity(proxy: &Proxy, name: &str, spec: &SandboxSpec) -> Identity {
    let run = proxy.address.rsplit(':').next().unwrap_or_default();
    Identity {
        project: PROJECT.to_owned(),
        address: Address::Sandbox(name.to_owned()),
        owner: OwnerId("faults".to_owned()),
        spec_hash: spec.hash(),
        generation: 1,
        intent: IntentId(format!("faults-{run}-{name}")),
        expires_at: None,
    }
}

fn mine() -> Owner {
    Owner { project: Some(PROJECT.to_owned()), owner: None }
}

/// Ids that the service itself has for an intent.
async fn of_intent(direct: &dyn Provider, identity: &Identity) -> Vec<SandboxId> {
    let listing = direct.list(&mine()).await.unwrap();
    let carries = |l: &std::collections::BTreeMap<_, _>| l.get(labels::INTENT) == Some(&identity.intent.0);
    listing.sandboxes.into_values().filter(|s| carries(&s.labels)).map(|s| s.id).collect()
}

/// What a provider makes wrongly of every fault; `direct` reaches the service past the proxy.
pub async fn faults(
    provider: &dyn Provider,
    direct: &dyn Provider,
    proxy: &Proxy,
    row: &Row,
    image: Image,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let spec = SandboxSpec { image, ..SandboxSpec::default() };
    let one = direct.create(&spec, &identity(proxy, "one", &spec)).await.unwrap();
    let listing = provider.list(&mine()).await.unwrap();
    assert!(listing.sandboxes.contains_key(&one), "without a fault the proxy is not noticed");

    for status in [401, 403, 404, 409, 500, 502, 503] {
        let answer = proxy.during(row.list, Fault::Status(status), provider.list(&mine())).await;
        let right = match (&answer, status) {
            (Err(ProviderError::Unauthorised { .. }), 401 | 403) => true,
            (Err(error), 500..) => error.is_retryable(),
            (Err(_), 404 | 409) => true,
            _ => false,
        };
        if !right {
            wrong.push(format!("a listing that is refused with {status}: {answer:?}"));
        }
    }
    for kept in [0, 5] {
        let answer = proxy.during(row.list, Fault::Cut(kept), provider.list(&mine())).await;
        if !answer.as_ref().is_err_and(ProviderError::is_retryable) {
            wrong.push(format!("a listing that breaks off after {kept} bytes: {answer:?}"));
        }
    }

    let answer = proxy.during(row.list, Fault::Slow, provider.list(&mine())).await;
    if !answer.as_ref().is_ok_and(|listing| listing.sandboxes.contains_key(&one)) {
        wrong.push(format!("a listing that comes slowly: {answer:?}"));
    }

    for status in [401, 403, 503] {
        let refused = identity(proxy, "refused", &spec);
        let create = provider.create(&spec, &refused);
        let answer = proxy.during(row.create, Fault::Status(status), create).await;
        let right = match (&answer, status) {
            (Err(ProviderError::Unauthorised { .. }), 401 | 403) => true,
            (Err(error), 503) => error.is_retryable(),
            _ => false,
        };
        if !right || !of_intent(direct, &refused).await.is_empty() {
            wrong.push(format!("a create that is refused with {status}: {answer:?}"));
        }
    }
    let lost = identity(proxy, "lost", &spec);
    let answer = proxy.during(row.create, Fault::Cut(1), provider.create(&spec, &lost)).await;
    if !answer.as_ref().is_err_and(ProviderError::is_retryable) {
        wrong.push(format!("a create whose answer breaks off: {answer:?}"));
    }
    let again = provider.create(&spec, &lost).await;
    let made = of_intent(direct, &lost).await;
    if !again.as_ref().is_ok_and(|id| made == [id.clone()]) {
        wrong.push(format!("a create whose answer broke off, again: {again:?}, and there are {made:?}"));
    }

    if direct.capabilities().processes {
        let exec = row.exec.expect("the sheet has processes");
        let guest = provider.guest(&one).await.unwrap();
        let command = |text: &str| Command::new(["sh", "-c", text]);
        let download = command("head -c 1048576 /dev/zero | tr '\\0' x");
        let whole = capture(&*guest, &download, &[], 4 << 20).await.unwrap();
        assert_eq!((whole.status.success(), whole.stdout.len()), (true, 1 << 20));
        for (what, command, kept) in [
            ("a command", command("printf %2000s begun; sleep 2; printf %2000s ended"), 1000),
            ("a download", download.clone(), 300_000),
            ("a command without an answer", command("sleep 1"), 0),
        ] {
            let attempt = capture(&*guest, &command, &[], 4 << 20);
            let answer = proxy.during(exec, Fault::Cut(kept), attempt).await;
            if let Ok(output) = answer {
                let (status, length) = (output.status, output.stdout.len());
                wrong.push(format!("{what} that breaks off after {kept} bytes: {status}, {length} bytes"));
            }
        }
        let attempt = capture(&*guest, &download, &[], 4 << 20);
        let answer = proxy.during(exec, Fault::Slow, attempt).await;
        if !answer.as_ref().is_ok_and(|output| *output == whole) {
            let answer = answer.map(|output| (output.status, output.stdout.len()));
            wrong.push(format!("a download that comes slowly: {answer:?}"));
        }
        for status in [401, 404, 500] {
            let program = command(":");
            let attempt = capture(&*guest, &program, &[], 1024);
            let answer = proxy.during(exec, Fault::Status(status), attempt).await;
            if !matches!(answer, Err(GuestError::Unreachable { .. })) {
                wrong
                    .push(format!("a command that is refused with {status}: {:?}", answer.map(|o| o.status)));
            }
        }
    }

    // At the end, since the account keeps the pause.
    let answer = proxy.during(row.list, Fault::Status(429), provider.list(&mine())).await;
    let asked = row.retry_after.then_some(RETRY_AFTER);
    if !matches!(&answer, Err(ProviderError::Throttled { retry_after }) if *retry_after == asked) {
        wrong.push(format!("a listing that is told to wait: {answer:?}"));
    }

    for id in direct.list(&mine()).await.unwrap().sandboxes.into_keys() {
        direct.delete(&id).await.unwrap();
    }
    wrong
}

const SIM: Row = Row {
    list: ("GET", "/v1/sandboxes"),
    create: ("POST", "/v1/sandboxes"),
    exec: Some(("POST", "/exec")),
    retry_after: true,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_cloud() {
    let dir = tempfile::tempdir().unwrap();
    let sim = crate::sim::world::Sim::start(dir.path(), 1, "calm", &[]);
    let proxy = Proxy::start(Upstream::Tcp(sim.url.replace("http://", ""))).await;
    let direct = super::open("sim", dir.path(), &[("url", &sim.url)]).await;
    let provider = super::open("sim", dir.path(), &[("url", &format!("http://{}", proxy.address))]).await;
    let wrong = faults(&*provider, &*direct, &proxy, &SIM, Image::Host).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}
