//! A daemon that is reached by TLS or SSH, and registries that want to know who asks.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pocketenv::model::{Image, Place, SandboxSpec};
use pocketenv::provider::{Command as Inside, Owner, Provider, ProviderError, capture};
use pocketenv::tree::{scan, tree_sha256};

use super::support::{Daemon, IMAGE, identity, spec, which};

/// How long a server may take to listen.
const UP: Duration = Duration::from_secs(30);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server that ends with this.
struct Server(Child);

impl Server {
    fn start(program: &str, arguments: &[&str], port: u16) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", program]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self(command.spawn().unwrap());
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                server.0.try_wait().unwrap().is_none() && begun.elapsed() < UP,
                "{program} does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn there(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| which(program).is_none());
    if let Some(missing) = missing {
        eprintln!("SKIPPED: {missing} is missing, see scripts/setup-test-deps");
    }
    missing.is_none()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn all() -> Owner {
    Owner { project: None, owner: None }
}

/// A command inside a new sandbox, and a second connection for its end.
async fn works(provider: &dyn Provider) {
    let spec = spec();
    let id = provider.create(&spec, &identity("box", &spec)).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();
    let input = vec![b'x'; 1 << 20];
    let output = capture(&*guest, &Inside::new(["cat"]), &input, 4 << 20).await.unwrap();
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
    assert!(provider.list(&all()).await.unwrap().sandboxes.contains_key(&id));
    provider.delete(&id).await.unwrap();
}

/// An authority, and a certificate for the server and one for a client.
pub fn authority(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let file = |name: &str| text(&dir.join(name)).to_owned();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"];
    let (ca, ca_key) = (file("ca.pem"), file("ca-key.pem"));
    let mut arguments = vec!["req", "-x509", "-days", "2"];
    arguments.extend(key);
    arguments.extend(["/CN=it", "-keyout", &ca_key, "-out", &ca]);
    run("openssl", &arguments);
    for (name, use_, extra) in
        [("server", "serverAuth", "\nsubjectAltName=IP:127.0.0.1"), ("client", "clientAuth", "")]
    {
        let (request, extensions) = (file("request"), file("extensions"));
        let (own_key, own) = (file(&format!("{name}-key.pem")), file(&format!("{name}.pem")));
        fs::write(&extensions, format!("extendedKeyUsage={use_}{extra}\n")).unwrap();
        let mut arguments = vec!["req", "-new"];
        arguments.extend(key);
        arguments.extend(["/CN=it", "-keyout", &own_key, "-out", &request]);
        run("openssl", &arguments);
        run(
            "openssl",
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                &extensions,
                "-out",
                &own,
            ],
        );
    }
}

/// A directory as `DOCKER_CERT_PATH` names it.
fn material(to: &Path, ca: &Path, client: Option<&Path>) {
    fs::create_dir_all(to).unwrap();
    fs::copy(ca.join("ca.pem"), to.join("ca.pem")).unwrap();
    if let Some(client) = client {
        fs::copy(client.join("client.pem"), to.join("cert.pem")).unwrap();
        fs::copy(client.join("client-key.pem"), to.join("key.pem")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tls_with_certificates_on_both_sides() {
    if !there(&["openssl"]) {
        return;
    }
    let port = free_port();
    let started = Daemon::start_with(|dir| {
        let tls = dir.join("authority");
        authority(&tls);
        let file = |name: &str| text(&tls.join(name)).to_owned();
        let listen = ["-H".to_owned(), format!("tcp://127.0.0.1:{port}"), "--tlsverify".to_owned()];
        let files = [("--tlscacert", "ca.pem"), ("--tlscert", "server.pem"), ("--tlskey", "server-key.pem")];
        listen.into_iter().chain(files.iter().flat_map(|(f, n)| [(*f).to_owned(), file(n)])).collect()
    });
    let Some(daemon) = started else { return };
    let dir = daemon.dir.path();
    let (good, other) = (dir.join("authority"), dir.join("other"));
    authority(&other);
    for (name, ca, client) in [
        ("right", &good, Some(&good)),
        ("nobody", &good, None),
        ("stranger", &good, Some(&other)),
        ("fooled", &other, Some(&good)),
    ] {
        material(&dir.join(name), ca, client.map(|path| path.as_path()));
    }
    let host = format!("tcp://127.0.0.1:{port}");
    let by = async |name: &str| {
        let certs = dir.join(name);
        daemon
            .provider_by(&[
                ("DOCKER_HOST", &host),
                ("DOCKER_TLS_VERIFY", "1"),
                ("DOCKER_CERT_PATH", text(&certs)),
            ])
            .await
    };
    works(&*by("right").await).await;
    for name in ["nobody", "stranger", "fooled"] {
        let error = by(name).await.list(&all()).await.unwrap_err();
        // Whom the daemon does not know it tells when it likes.
        let told = name != "fooled" || matches!(error, ProviderError::Permanent { .. });
        assert!(told, "{name}: {error:?}");
    }
    // The same by a context of the `docker` command.
    let config = dir.join("docker-config");
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").env("DOCKER_CONFIG", &config).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let right = dir.join("right");
    let file = |name: &str| text(&right.join(name)).to_owned();
    let endpoint =
        format!("host={host},ca={},cert={},key={}", file("ca.pem"), file("cert.pem"), file("key.pem"));
    docker(&["context", "create", "far", "--docker", &endpoint]);
    let by_context = [("DOCKER_CONFIG", text(&config)), ("DOCKER_CONTEXT", "far")];
    works(&*daemon.provider_by(&by_context).await).await;
    docker(&["context", "create", "blind", "--docker", &format!("{endpoint},skip-tls-verify=true")]);
    let output = daemon.pocketenv(
        &["provider", "test", "docker", "--case", "lifecycle/whole"],
        &[("DOCKER_CONFIG", text(&config)), ("DOCKER_CONTEXT", "blind"), ("DOCKER_HOST", "")],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("does not verify who the daemon is"), "{said}");
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

#[test]
fn by_ssh_with_a_key_and_nothing_else() {
    if !there(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let dir = daemon.dir.path();
    let file = |name: &str| text(&dir.join(name)).to_owned();
    for name in ["host-key", "user-key", "other-key"] {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file(name)]);
    }
    let port = free_port();
    let server = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\nSetEnv DOCKER_HOST={}\n",
        file("host-key"),
        file("user-key.pub"),
        daemon.host(),
    );
    fs::write(dir.join("sshd_config"), server).unwrap();
    // Where it goes before anybody is let in.
    fs::create_dir_all("/run/sshd").unwrap();
    let _server = Server::start("/usr/sbin/sshd", &["-D", "-e", "-f", &file("sshd_config")], port);
    let host_key = fs::read_to_string(dir.join("host-key.pub")).unwrap();
    fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
    // The `ssh` that is found first has settings of this test only.
    let path = |key: &str| {
        let bin = dir.join(format!("bin-{key}"));
        fs::create_dir_all(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F none -o IdentitiesOnly=yes -o IdentityAgent=none -o IdentityFile={} -o UserKnownHostsFile={} -o StrictHostKeyChecking=yes \"$@\"\n",
            file(key),
            file("known")
        );
        fs::write(bin.join("ssh"), script).unwrap();
        fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
    };
    let host = format!("ssh://root@127.0.0.1:{port}");
    let trial = |key: &str, cases: &[&str]| {
        let path = path(key);
        let start = ["provider", "test", "docker", "--image", IMAGE, "--case"];
        let env = [("DOCKER_HOST", host.as_str()), ("PATH", path.as_str())];
        let tried = cases.iter().map(|name| daemon.pocketenv(&[&start[..], &[name]].concat(), &env));
        tried.collect::<Vec<_>>()
    };
    for output in
        trial("user-key", &["lifecycle/whole", "exec/binary", "exec/left-behind", "service/output-cut"])
    {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains('✓'), "{said}");
    }
    for output in trial("other-key", &["lifecycle/whole"]) {
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("does not let this user in"), "{said}");
    }
    assert_eq!(daemon.inventory(), Vec::<String>::new());
    // Nothing of a connection is left.
    let left = Command::new("pgrep").args(["-f", &format!("ssh .*-p {port} ")]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

/// `ann:hunter2`, as `htpasswd -B` writes it.
const USERS: &str = "ann:$2b$04$ztXQmMQ8MFFQbTMkYlAfWOZzhdRmBqCZFlDIiRvfI/H/kpQ0y7wty\n";

/// A registry that lets in `ann` with `hunter2`, and its address.
fn registry(dir: &Path) -> (String, Server) {
    let port = free_port();
    let registry = format!("127.0.0.1:{port}");
    fs::write(dir.join("users"), USERS).unwrap();
    let settings = format!(
        "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {registry} }}\n\
         auth: {{ htpasswd: {{ realm: it, path: {} }} }}\n",
        text(&dir.join("registry")),
        text(&dir.join("users"))
    );
    fs::write(dir.join("registry.yml"), settings).unwrap();
    let server = Server::start("docker-registry", &["serve", text(&dir.join("registry.yml"))], port);
    (registry, server)
}

/// A directory with the settings of the `docker` command.
fn config(dir: &Path, name: &str, content: &str) -> String {
    let place = dir.join(name);
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("config.json"), content).unwrap();
    text(&place).to_owned()
}

fn auth(registry: &str, pair: &str) -> String {
    format!(r#"{{"auths":{{"{registry}":{{"auth":"{}"}}}}}}"#, BASE64_STANDARD.encode(pair))
}

fn docker(daemon: &Daemon, config: &str, arguments: &[&str]) {
    let mut command = Command::new("docker");
    command.env("DOCKER_CONFIG", config).args(["-H", &daemon.host()]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The image, at the registry alone.
fn push(daemon: &Daemon, registry: &str, config: &str) -> String {
    let remote = format!("{registry}/it/image:v1");
    docker(daemon, config, &["tag", IMAGE, &remote]);
    docker(daemon, config, &["push", &remote]);
    docker(daemon, config, &["rmi", &remote]);
    remote
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_asked_with_the_credentials_of_this_machine() {
    if !there(&["docker-registry", "setpriv"]) {
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let dir = daemon.dir.path();
    let (registry, _server) = registry(dir);

    // What a user of the `docker` command has: nothing, a wrong password and the right one.
    let auth = |pair: &str| auth(&registry, pair);
    let (none, wrong) = (config(dir, "none", "{}"), config(dir, "wrong", &auth("ann:hunter3")));
    let right = config(dir, "right", &auth("ann:hunter2"));
    let remote = push(&daemon, &registry, &right);
    let docker = |arguments: &[&str]| docker(&daemon, &right, arguments);

    let host = daemon.host();
    let by =
        async |config: &str| daemon.provider_by(&[("DOCKER_HOST", &host), ("DOCKER_CONFIG", config)]).await;
    let wanted = SandboxSpec { image: Image::Oci(remote.clone()), ..spec() };
    for (config, said) in [(&none, "docker login"), (&wrong, "do not open it")] {
        let error = by(config).await.create(&wanted, &identity("no", &wanted)).await.unwrap_err();
        let told = matches!(&error, ProviderError::Unauthorised { message } if message.contains(said));
        assert!(told && !error.to_string().contains("hunter"), "{error:?}");
    }
    let provider = by(&right).await;
    let id = provider.create(&wanted, &identity("pulled", &wanted)).await.unwrap();
    provider.delete(&id).await.unwrap();
    docker(&["rmi", &remote]);

    // A build whose first line needs it.
    let context = dir.join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {remote}\nCOPY . /ctx\n")).unwrap();
    let sha256 = tree_sha256(&scan(&context).unwrap());
    let image = Image::Build { context: Place(context), dockerfile: None, sha256 };
    let built = SandboxSpec { image, ..spec() };
    let error = by(&none).await.create(&built, &identity("no", &built)).await.unwrap_err();
    assert!(error.to_string().contains("no basic auth credentials"), "{error}");
    let id = provider.create(&built, &identity("built", &built)).await.unwrap();
    provider.delete(&id).await.unwrap();
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

/// A program that keeps the credentials, as desktops have one: for every registry, for one of them, and with none for what is asked.
#[test]
fn helpers_are_asked_for_credentials() {
    if !there(&["docker-registry", "setpriv"]) {
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let dir = daemon.dir.path();
    let (registry, _server) = registry(dir);
    let remote = push(&daemon, &registry, &config(dir, "right", &auth(&registry, "ann:hunter2")));
    let (bin, asked) = (dir.join("bin"), dir.join("asked"));
    fs::create_dir(&bin).unwrap();
    let helper = |name: &str, answer: &str| {
        let program = bin.join(format!("docker-credential-{name}"));
        let script =
            format!("#!/bin/sh\nread -r server\necho \"{name} $1 $server\" >>{}\n{answer}\n", text(&asked));
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    helper("keeps", r#"echo '{ "ServerURL": "it", "Username": "ann", "Secret": "hunter2" }'"#);
    helper("wrong", r#"echo '{ "ServerURL": "it", "Username": "ann", "Secret": "hunter3" }'"#);
    helper("empty", "echo 'credentials not found in native keychain'; exit 1");
    helper("breaks", "echo 'hunter2 is locked away' >&2; exit 2");
    let path = format!("{}:{}", text(&bin), std::env::var("PATH").unwrap());

    let file = dir.join("pocketenv.yaml");
    let apply = |image: &str, name: &str, settings: &str, code: i32| {
        let _ = fs::remove_file(&asked);
        let manifest = format!(
            "version: 1\nname: helped\ndefaults: {{ provider: docker }}\nsandboxes: {{ box: {{ {image} }} }}\n"
        );
        fs::write(&file, manifest).unwrap();
        let settings = config(dir, name, settings);
        let env = [("PATH", path.as_str()), ("DOCKER_CONFIG", &settings)];
        let output = daemon.pocketenv(&["apply", "-f", text(&file), "--yes"], &env);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{name}: {said}");
        assert!(!said.contains("hunter"), "{said}");
        let told = fs::read_to_string(&asked).unwrap_or_default();
        let gone = daemon.pocketenv(&["destroy", "-f", text(&file), "--yes"], &env);
        assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
        // It is pulled anew each time.
        daemon.docker(&["rmi", &remote]);
        (said, told)
    };
    let image = format!("image: '{remote}'");
    let asks = |name: &str| format!("{name} get {registry}\n");
    let for_one = |name: &str| format!(r#"{{ "credHelpers": {{ "{registry}": "{name}" }} }}"#);
    let pulled = apply(&image, "store", r#"{ "credsStore": "keeps" }"#, 0);
    assert_eq!(pulled.1, asks("keeps"));
    // The one for the registry comes before the one for all.
    let both = format!(r#"{{ "credsStore": "wrong", "credHelpers": {{ "{registry}": "keeps" }} }}"#);
    assert_eq!(apply(&image, "both", &both, 0).1, asks("keeps"));
    let (said, told) = apply(&image, "empty", &for_one("empty"), 7);
    assert!(said.contains("docker login") && told == asks("empty"), "{said}\n{told}");
    assert!(apply(&image, "wrong", &for_one("wrong"), 7).0.contains("do not open it"));
    for (name, why) in [("breaks", "failed"), ("absent", "cannot be run"), ("../x", "no program has")] {
        let (said, _) = apply(&image, "broken", &for_one(name), 7);
        assert!(said.contains(&format!("`{name}`")) && said.contains(why), "{said}");
    }

    // A build asks for what its first line needs, although no file names the registry.
    let context = dir.join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {remote} AS base\nFROM base\nCOPY . /ctx\n"))
        .unwrap();
    let built = apply("build: ./context", "store", r#"{ "credsStore": "keeps" }"#, 0);
    assert!(built.1.contains(&asks("keeps")), "{}", built.1);
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}
