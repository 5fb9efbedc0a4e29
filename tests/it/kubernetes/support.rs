//! A whole cluster of one node: etcd, the API server, its controllers and scheduler, containerd and a kubelet, all of them real, with directories and ports of
//! their own. `scripts/setup-test-deps` builds what the distribution does not have as a package.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pocketenv::provider::{Provider, ProviderContext, Registry};
use sha2::Digest as _;

use crate::docker::support::{busybox_root, which};

/// The image with busybox.
pub const IMAGE: &str = "docker.io/library/busybox:1";
/// The namespace of the tests.
pub const NAMESPACE: &str = "it";
/// How long each part may take to be ready, and to end.
const UP: Duration = Duration::from_secs(120);
const DOWN: Duration = Duration::from_secs(20);
/// The parts that are no package.
const SERVERS: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];

/// A cluster that ends with this.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    children: Vec<(&'static str, Child)>,
    bridge: String,
    forwarding: String,
}

fn servers() -> PathBuf {
    if let Some(place) = std::env::var_os("POCKETENV_TEST_KUBERNETES") {
        return place.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    cache.join("pocketenv-test-kubernetes")
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// Starts one, with the image; `None`, after saying what is missing, where that cannot be.
    pub fn start() -> Option<Self> {
        if !crate::engine::support::is_root() {
            eprintln!("SKIPPED: a node of Kubernetes needs root");
            return None;
        }
        for program in ["etcd", "containerd", "ctr", "runc", "kubectl", "setpriv", "busybox", "openssl", "ip"]
        {
            if which(program).is_none() {
                eprintln!("SKIPPED: {program} is missing");
                return None;
            }
        }
        for server in SERVERS {
            if !servers().join(server).is_file() {
                eprintln!("SKIPPED: {server} is missing");
                return None;
            }
        }
        let dir = tempfile::Builder::new().prefix("pocketenv-k8s-").tempdir().unwrap();
        let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let mut cluster = Self { dir, children: Vec::new(), bridge: String::new(), forwarding };
        cluster.control_plane();
        cluster.node();
        cluster.objects();
        Some(cluster)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a part of it.
    fn spawn(&mut self, program: &'static str, args: &[String]) {
        let place = match SERVERS.contains(&program) {
            true => servers().join(program),
            false => which(program).unwrap(),
        };
        let log = fs::File::create(self.path(&format!("{program}.log"))).unwrap();
        // If these tests are killed, it ends by itself.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(place).args(args).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push((program, command.spawn().unwrap()));
    }

    pub fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !look() {
            if begun.elapsed() > UP {
                let mut said = String::new();
                for (program, _) in &self.children {
                    let log = fs::read_to_string(self.path(&format!("{program}.log"))).unwrap_or_default();
                    let lines: Vec<&str> = log.lines().collect();
                    said.push_str(&format!(
                        "\n== {program}\n{}",
                        lines[lines.len().saturating_sub(25)..].join("\n")
                    ));
                }
                panic!("{what}: not after {} s{said}", UP.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn control_plane(&mut self) {
        let (etcd, peer, api) = (free_port(), free_port(), free_port());
        let etcd = format!("http://127.0.0.1:{etcd}");
        let arg = |name: &str, value: &str| format!("--{name}={value}");
        self.spawn(
            "etcd",
            &[
                arg("data-dir", &self.path("etcd")),
                arg("listen-client-urls", &etcd),
                arg("advertise-client-urls", &etcd),
                arg("listen-peer-urls", &format!("http://127.0.0.1:{peer}")),
                "--unsafe-no-fsync".to_owned(),
            ],
        );
        let (key, public) = (self.path("sa.key"), self.path("sa.pub"));
        for args in
            [vec!["genrsa", "-out", &key, "2048"], vec!["rsa", "-in", &key, "-pubout", "-out", &public]]
        {
            let made =
                Command::new("openssl").args(args).stderr(Stdio::null()).stdout(Stdio::null()).status();
            assert!(made.unwrap().success());
        }
        let token = uuid::Uuid::now_v7().simple().to_string();
        let tokens = self.write("tokens", format!("{token},admin,admin,\"system:masters\"\n"));
        self.spawn(
            "kube-apiserver",
            &[
                arg("etcd-servers", &etcd),
                "--bind-address=127.0.0.1".to_owned(),
                arg("secure-port", &api.to_string()),
                // It may not be a loopback, and nothing here goes there.
                "--advertise-address=198.51.100.1".to_owned(),
                arg("cert-dir", &self.path("certs")),
                arg("token-auth-file", &tokens),
                "--authorization-mode=RBAC".to_owned(),
                arg("service-account-key-file", &public),
                arg("service-account-signing-key-file", &key),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--kubelet-preferred-address-types=Hostname".to_owned(),
            ],
        );
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters: [ {{ name: it, cluster: {{ server: 'https://127.0.0.1:{api}', certificate-authority: '{}' }} }} ]\n\
             users: [ {{ name: it, user: {{ token: {token} }} }} ]\n\
             contexts: [ {{ name: it, context: {{ cluster: it, user: it, namespace: {NAMESPACE} }} }} ]\n",
            self.path("certs/apiserver.crt"),
        );
        let kubeconfig = self.write("kubeconfig", kubeconfig);
        self.until("the API server", || self.kubectl(&["get", "--raw", "/readyz"]).status.success());
        let config = arg("kubeconfig", &kubeconfig);
        let quiet = ["--leader-elect=false", "--port=0", "--secure-port=0"].map(str::to_owned);
        let controllers = [
            config.clone(),
            arg("service-account-private-key-file", &key),
            // Volumes of the class `host` are directories below /tmp/hostpath_pv.
            "--enable-hostpath-provisioner".to_owned(),
        ];
        self.spawn("kube-controller-manager", &[&controllers[..], &quiet[..]].concat());
        self.spawn("kube-scheduler", &[&[config][..], &quiet[..]].concat());
    }

    fn node(&mut self) {
        let port = free_port();
        self.bridge = format!("pe{port}");
        let socket = self.path("c.sock");
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
restrict_oom_score_adj = true
sandbox_image = "docker.io/library/pause:test"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            root = self.path("containerd"),
            state = self.path("state"),
            cni = self.path("cni"),
        );
        let config = self.write("containerd.toml", config);
        fs::create_dir(self.path("cni")).unwrap();
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": self.bridge, "plugins": [{
                "type": "bridge", "bridge": self.bridge, "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": self.path("addresses"),
                    "ranges": [[{ "subnet": format!("10.213.{}.0/24", port % 250) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        self.write("cni/10-it.conflist", network.to_string());
        self.spawn("containerd", &["--config".to_owned(), config]);
        self.until("containerd", || self.ctr(&["version"]).status.success());
        let sleep: &[&str] = &["/bin/sleep", "100000000"];
        for (name, command) in [("docker.io/library/pause:test", sleep), (IMAGE, &["/bin/sh"])] {
            let archive = self.write("image.tar", image(name, command));
            let imported = self.ctr(&["-n", "k8s.io", "images", "import", &archive]);
            assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        }
        let kubelet = serde_json::json!({
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": "127.0.0.1", "port": port, "healthzPort": 0, "readOnlyPort": 0,
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "cgroupDriver": "cgroupfs", "enforceNodeAllocatable": [], "failSwapOn": false,
            "evictionHard": {
                "memory.available": "1Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "makeIPTablesUtilChains": false,
        });
        let kubelet = self.write("kubelet.yaml", kubelet.to_string());
        self.spawn(
            "kubelet",
            &[
                format!("--config={kubelet}"),
                format!("--kubeconfig={}", self.path("kubeconfig")),
                "--container-runtime=remote".to_owned(),
                format!("--container-runtime-endpoint=unix://{socket}"),
                format!("--root-dir={}", self.path("kubelet")),
                format!("--cert-dir={}", self.path("kubelet-certs")),
                "--hostname-override=localhost".to_owned(),
                // A pod is gone when its containers are, and those that have ended are otherwise looked at once a minute.
                "--maximum-dead-containers-per-container=0".to_owned(),
            ],
        );
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.until("the node", || self.kubectl(&["get", "node", "localhost", "-o", ready]).stdout == b"True");
    }

    fn objects(&self) {
        self.says(&["create", "namespace", NAMESPACE]);
        let class = self.write(
            "class.yaml",
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata:\n  name: host\n  annotations: { storageclass.kubernetes.io/is-default-class: 'true' }\nprovisioner: kubernetes.io/host-path\n",
        );
        self.says(&["apply", "-f", &class]);
        self.until("the service account", || {
            self.kubectl(&["-n", NAMESPACE, "get", "serviceaccount", "default"]).status.success()
        });
    }

    pub fn kubeconfig(&self) -> String {
        self.path("kubeconfig")
    }

    /// Runs `kubectl`, which none of our code has a hand in.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(which("kubectl").unwrap());
        command.env("HOME", self.dir.path()).arg("--kubeconfig").arg(self.kubeconfig());
        command.args(["--request-timeout=60s"]).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// What it prints, of a call that must succeed.
    pub fn says(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn ctr(&self, args: &[&str]) -> Output {
        let mut command = Command::new(which("ctr").unwrap());
        command.arg("--address").arg(self.path("c.sock")).args(args).output().unwrap()
    }

    pub async fn provider(&self) -> Arc<dyn Provider> {
        let context = ProviderContext {
            data_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            executable: PathBuf::new(),
            vars: BTreeMap::from([("KUBECONFIG".to_owned(), self.kubeconfig())]),
            settings: BTreeMap::from([(
                "kubernetes".to_owned(),
                BTreeMap::from([("volume_size".to_owned(), "16Mi".to_owned())]),
            )]),
            credentials: BTreeMap::new(),
        };
        let registry =
            Registry::open(["kubernetes"], &context).await.unwrap_or_else(|(_, error)| panic!("{error}"));
        Arc::clone(registry.get("kubernetes").unwrap())
    }

    /// Everything that somebody of us could have made, by kind and name.
    pub fn inventory(&self) -> Vec<String> {
        let kinds = "configmaps,pods,networkpolicies,persistentvolumeclaims,services";
        let all = self.says(&["-n", NAMESPACE, "get", kinds, "-o", "name"]);
        let theirs = "configmap/kube-root-ca.crt";
        all.lines().filter(|name| !name.is_empty() && *name != theirs).map(str::to_owned).collect()
    }

    /// Runs our own program with a home of its own.
    pub fn pocketenv(&self, args: &[&str]) -> Output {
        let program =
            std::env::var_os("POCKETENV_TEST_EXE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into());
        let mut command = Command::new(program);
        command.args(args).env("POCKETENV_HOME", self.dir.path().join("home"));
        command.env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null()).output().unwrap()
    }
}

/// An image of busybox, as `docker save` would write it.
fn image(name: &str, command: &[&str]) -> Vec<u8> {
    let root = busybox_root(&[]);
    let digest = hex::encode(sha2::Sha256::digest(&root));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Entrypoint": command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    let files = [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", root),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, path, data.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

impl Cluster {
    fn end(&mut self, program: &str) {
        let Some(at) = self.children.iter().position(|(name, _)| *name == program) else { return };
        let (_, mut child) = self.children.remove(at);
        signal("TERM", child.id());
        let begun = Instant::now();
        while let Ok(None) = child.try_wait() {
            if begun.elapsed() > DOWN {
                signal("KILL", child.id());
                let _ = child.wait();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for at in 0..self.children.len() {
                let (program, child) = &mut self.children[at];
                let (program, ended) = (*program, matches!(child.try_wait(), Ok(Some(_))));
                let log = fs::read_to_string(self.path(&format!("{program}.log"))).unwrap_or_default();
                // One that ended by itself says why, in whatever form.
                let errors: Vec<&str> = log
                    .lines()
                    .filter(|l| ended || l.starts_with('E') || l.contains("level=error"))
                    .collect();
                let (shown, word) = if ended { (60, "ended, and said") } else { (8, "said") };
                eprintln!("{program} {word}:\n{}", errors[errors.len().saturating_sub(shown)..].join("\n"));
            }
        }
        if self.children.iter().any(|(name, _)| *name == "kubelet") {
            // With their pods go mounts, network namespaces, groups and logs.
            self.kubectl(&[
                "-n",
                NAMESPACE,
                "delete",
                "--all",
                "--wait",
                "--timeout=40s",
                "configmaps,pods,pvc",
            ]);
        }
        self.end("kubelet");
        for task in lines(&self.ctr(&["-n", "k8s.io", "tasks", "ls", "-q"])) {
            self.ctr(&["-n", "k8s.io", "tasks", "rm", "-f", &task]);
        }
        for container in lines(&self.ctr(&["-n", "k8s.io", "containers", "ls", "-q"])) {
            self.ctr(&["-n", "k8s.io", "containers", "rm", &container]);
        }
        for program in ["kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd", "containerd"] {
            self.end(program);
        }
        // What keeps a container outlives containerd, and names our directory.
        let place = self.dir.path().display().to_string();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
            let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            if words.contains("containerd-shim") && words.contains(&place) {
                signal("KILL", pid);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&place));
        for mount in below.collect::<Vec<_>>().into_iter().rev() {
            let _ = Command::new("umount").args(["-l", mount]).stderr(Stdio::null()).status();
        }
        if !self.bridge.is_empty() {
            let _ = Command::new("ip").args(["link", "del", &self.bridge]).stderr(Stdio::null()).status();
        }
        // Of volumes that are gone; one with something in it stays.
        let _ = fs::remove_dir("/tmp/hostpath_pv");
        let _ = fs::write("/proc/sys/net/ipv4/ip_forward", &self.forwarding);
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for group in ["kubepods", "k8s.io"] {
                remove_groups(&controller.path().join(group));
            }
        }
    }
}

/// Removes empty groups, the innermost first; one that is in use stays.
fn remove_groups(group: &Path) {
    for inner in fs::read_dir(group).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&inner.path());
        }
    }
    let _ = fs::remove_dir(group);
}
