//! `examples/portable` at every provider: the same manifest, and the same to be seen.
//!
//! A provider joins by one test: how its service is started, what has to be set, which files it needs besides. What cannot be seen at it is told by its sheet.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pocketenv::model::SandboxId;
use pocketenv::provider::{Capabilities, Owner, Provider, builtin_capabilities};
use serde_json::Value;

use crate::emulate::sdk::{Emulator, pocketenv};

const SECRET: &str = "only-for-those-inside";
const PAGE: &str = "the same everywhere\n";
/// The process that serves the page; the first, since it may have others for its connections.
const SERVER: &str = r#"for process in /proc/[0-9]*; do
    case $(tr '\0' ' ' 2>/dev/null <"$process/cmdline") in
    "python3 -m http.server "* | "busybox httpd "*) echo "${process#/proc/}" ;;
    esac
done | sort -n | head -n 1"#;

/// What of the example there is at the provider.
async fn listed(direct: &dyn Provider) -> Vec<SandboxId> {
    let owner = Owner { project: Some("portable".to_owned()), owner: None };
    direct.list(&owner).await.unwrap().sandboxes.into_keys().collect()
}

struct User<'a> {
    home: &'a Path,
    provider: &'a str,
    env: Vec<(&'a str, String)>,
    /// Files of the example besides the first.
    besides: &'a [&'a str],
    /// The provider itself, past the program and its record; `None` where nobody else has a hand in it.
    direct: Option<Arc<dyn Provider>>,
}

impl User<'_> {
    fn sheet(&self) -> &'static Capabilities {
        builtin_capabilities().iter().find(|sheet| sheet.provider == self.provider).unwrap()
    }

    fn has_volumes(&self) -> bool {
        self.sheet().honours(&["volumes"], None)
    }

    /// What a command prints, which has to end with `code`.
    fn runs(&self, arguments: &[&str], code: i32) -> String {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/portable");
        let mut command = pocketenv(self.home);
        command.args(["--provider", self.provider]).envs(self.env.iter().map(|(n, v)| (*n, v.as_str())));
        let volume: &[&str] = if self.has_volumes() { &["volume.yaml"] } else { &[] };
        for file in ["pocketenv.yaml"].iter().chain(self.besides).chain(volume) {
            command.arg("-f").arg(example.join(file));
        }
        let output = command.args(arguments).env("GREETING_TOKEN", SECRET).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let provider = self.provider;
        assert_eq!(output.status.code(), Some(code), "{provider}: {arguments:?}\n{out}\n{err}");
        if arguments[0] != "exec" {
            assert!(!format!("{out}{err}").contains(SECRET), "{provider}: {arguments:?} shows the secret");
        }
        out.into_owned()
    }

    fn inside(&self, script: &str) -> String {
        self.runs(&["exec", "web", "--", "sh", "-c", script], 0)
    }

    /// The manifest is true, as far as it can be seen.
    async fn all_is_well(&self) {
        let sheet = self.sheet();
        self.runs(&["plan", "--detailed-exitcode"], 0);
        if sheet.processes {
            assert_eq!(self.inside("cat /srv/www/index.html"), PAGE);
            assert_eq!(self.inside("echo $GREETING; echo $GREETING_TOKEN"), format!("hello\n{SECRET}\n"));
            // With what the image has.
            let fetch = "if command -v python3 >/dev/null; then python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/').read().decode(), end='')\"; else busybox wget -q -O - http://127.0.0.1:8000/; fi";
            assert_eq!(self.inside(fetch), PAGE);
        }
        if sheet.processes && sheet.forwards_from_host {
            let ports: Value = serde_json::from_str(&self.runs(&["ports", "-o", "json"], 0)).unwrap();
            let at = ports["ports"][0]["reached_at"].as_str().unwrap();
            let client =
                reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
            let answer = client.get(format!("http://{at}/")).send().await.unwrap();
            assert_eq!(answer.text().await.unwrap(), PAGE);
        }
    }

    /// From nothing to nothing.
    async fn lives(&self) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sheet = self.sheet();
        self.runs(&["plan", "--detailed-exitcode"], 2);
        self.runs(&["apply", "--yes"], 0);
        self.all_is_well().await;
        if sheet.processes {
            self.inside("echo other > /srv/www/index.html");
            self.runs(&["plan", "--detailed-exitcode"], 2);
            self.runs(&["apply", "--yes"], 0);
            self.all_is_well().await;
            let killed = self.inside(SERVER);
            assert!(killed.trim().parse::<u32>().is_ok(), "{killed:?}");
            self.inside(&format!("kill -9 {killed}"));
            self.runs(&["apply", "--yes"], 0);
            self.all_is_well().await;
            assert_ne!(self.inside(SERVER), killed);
        }
        let keeps = self.has_volumes() && sheet.processes;
        if keeps {
            self.inside("echo kept > /srv/data/kept");
        }
        if let Some(direct) = &self.direct {
            let ids = listed(&**direct).await;
            assert_eq!(ids.len(), 1, "{ids:?}");
            direct.stop(&ids[0]).await.unwrap();
            self.runs(&["plan", "--detailed-exitcode"], 2);
            self.runs(&["apply", "--yes", "--allow-data-loss"], 0);
            self.all_is_well().await;
        }
        if keeps {
            self.runs(&["destroy", "--yes"], 0);
            self.runs(&["apply", "--yes"], 0);
            self.all_is_well().await;
            assert_eq!(self.inside("cat /srv/data/kept"), "kept\n");
        }
        self.runs(&["destroy", "--yes", "--volumes"], 0);
        self.runs(&["plan", "--detailed-exitcode"], 2);
        if let Some(direct) = &self.direct {
            assert_eq!(listed(&**direct).await, []);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local() {
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    User { home: home.path(), provider: "local", env: vec![], besides: &[], direct: None }.lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker() {
    let Some(daemon) = crate::docker::support::Daemon::start() else { return };
    // The image of the example, made here.
    daemon.import("busybox:1", &[]);
    let direct = Some(daemon.provider().await);
    let env = vec![("DOCKER_HOST", daemon.host())];
    User { home: daemon.dir.path(), provider: "docker", env, besides: &["image.yaml"], direct }.lives().await;
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes() {
    let Some(cluster) = crate::kubernetes::support::Cluster::start() else { return };
    at_cluster(&cluster).await;
}

/// The example at a cluster that runs.
pub async fn at_cluster(cluster: &crate::kubernetes::support::Cluster) {
    let direct = Some(cluster.provider().await);
    let env = vec![("KUBECONFIG", cluster.kubeconfig())];
    User { home: cluster.dir.path(), provider: "kubernetes", env, besides: &["image.yaml"], direct }
        .lives()
        .await;
    assert_eq!(cluster.inventory(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn daytona() {
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let emulator = Emulator::start("daytona", home.path(), &[]);
    let direct = Some(crate::conformance::daytona::open(home.path(), &emulator.url).await);
    let env = vec![("DAYTONA_API_KEY", "local".to_owned()), ("DAYTONA_API_URL", emulator.url.clone())];
    User { home: home.path(), provider: "daytona", env, besides: &[], direct }.lives().await;
    emulator.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn e2b() {
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let emulator = Emulator::start("e2b", home.path(), &[]);
    let direct = Some(crate::conformance::e2b::open(home.path(), &emulator.url).await);
    let url = || emulator.url.clone();
    let env = vec![("E2B_API_KEY", "local".to_owned()), ("E2B_API_URL", url()), ("E2B_SANDBOX_URL", url())];
    User { home: home.path(), provider: "e2b", env, besides: &[], direct }.lives().await;
    emulator.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sim() {
    let home = tempfile::tempdir().unwrap();
    let sim = crate::sim::world::Sim::start(home.path(), 1, "calm", &[]);
    let direct = Some(crate::conformance::open("sim", home.path(), &[("url", &sim.url)]).await);
    let env = vec![("POCKETENV_SIM_URL", sim.url.clone())];
    User { home: home.path(), provider: "sim", env, besides: &[], direct }.lives().await;
    let inventory = sim.inventory().await;
    assert_eq!(inventory["sandboxes"].as_array().unwrap().len(), 0, "{inventory}");
}
