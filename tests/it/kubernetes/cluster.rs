//! The provider, through the program and by itself, against one cluster.

use std::fs;
use std::sync::Arc;

use pocketenv::model::{
    Egress, Image, NetworkSpec, PortSpec, Quantity, Resources, SandboxSpec, SandboxState, labels as names,
};
use pocketenv::provider::{Command, Guest, Owner, Provider, ProviderError, capture};

use super::support::{Cluster, IMAGE, NAMESPACE};
use crate::docker::support::{identity, next};

pub fn spec() -> SandboxSpec {
    SandboxSpec { image: Image::Oci(IMAGE.to_owned()), ..SandboxSpec::default() }
}

pub async fn says(guest: &dyn Guest, command: &Command) -> String {
    let output = capture(guest, command, &[], 4096).await.unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// One cluster takes half a minute to start, so everything is tried in one.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_worked_with() {
    let Some(cluster) = Cluster::start() else { return };
    let provider = cluster.provider().await;
    what_is_made(&cluster, &provider).await;
    users(&provider).await;
    what_never_runs_is_taken_back(&cluster, &provider).await;
    a_pod_that_is_gone_is_told(&cluster, &provider).await;
    a_project(&cluster);
    super::manifests::grant_what_is_needed_and_no_more(&cluster);
    assert_eq!(cluster.inventory(), Vec::<String>::new());
}

async fn what_is_made(cluster: &Cluster, provider: &Arc<dyn Provider>) {
    let mut spec = SandboxSpec {
        hostname: "front".to_owned(),
        resources: Resources {
            cpu_millis: Some(500),
            memory: Some(Quantity::from_bytes(64 << 20)),
            ..Resources::default()
        },
        network: NetworkSpec {
            egress: Some(Egress::Deny),
            allow: vec!["10.1.0.0/16:443".to_owned()],
            ..NetworkSpec::default()
        },
        ..spec()
    };
    spec.ports.insert(8000, PortSpec::default());
    let identity = identity("api", &spec);
    let id = provider.create(&spec, &identity).await.unwrap();
    let inventory = cluster.inventory();
    let service = inventory.last().and_then(|last| last.strip_prefix("service/")).unwrap().to_owned();
    assert_eq!(
        inventory[..3],
        [format!("configmap/{id}"), format!("pod/{id}"), format!("networkpolicy.networking.k8s.io/{id}"),]
    );
    assert_eq!(inventory.len(), 4);
    let of = |kind: &str, path: &str| {
        cluster.says(&["-n", NAMESPACE, "get", kind, &id.0, "-o", &format!("jsonpath={{{path}}}")])
    };
    assert_eq!(of("pod", ".metadata.ownerReferences[0].name"), id.0);
    assert_eq!(of("pod", ".spec.containers[0].resources.limits.cpu"), "500m");
    assert_eq!(of("pod", ".spec.automountServiceAccountToken"), "false");
    assert_eq!(of("networkpolicy", ".spec.egress[0].to[0].ipBlock.cidr"), "10.1.0.0/16");
    assert_eq!(of("networkpolicy", ".spec.ingress[0].ports[0].port"), "8000");
    assert_eq!(of("configmap", ".metadata.managedFields[0].manager"), "pocketenv");
    assert!(of("configmap", ".metadata.annotations").contains(names::INTENT));
    let guest = provider.guest(&id).await.unwrap();
    assert_eq!(says(&*guest, &Command::new(["hostname"])).await, "front");
    // The cluster's own controllers find the pod behind the service.
    let behind = |what: &str| {
        let path = format!("jsonpath={{.subsets[*].{what}}}");
        cluster.says(&["-n", NAMESPACE, "get", "endpoints", &service, "-o", &path])
    };
    let address = of("pod", ".status.podIP");
    cluster.until("the pod is behind its service", || behind("addresses[*].ip") == address);
    assert_eq!(behind("ports[*].port"), "8000");
    let told = provider.get(&id).await.unwrap().unwrap().notes;
    assert_eq!(told, [format!("inside the cluster: {service}.{NAMESPACE}.svc, port 8000")]);

    // Ports and the way out change while it runs.
    spec.ports.insert(9000, PortSpec::default());
    spec.network = NetworkSpec::default();
    let uid = of("pod", ".metadata.uid");
    provider.update(&id, &spec, &next(&identity, &spec)).await.unwrap();
    assert_eq!(of("networkpolicy", ".spec.policyTypes"), r#"["Ingress"]"#);
    assert_eq!(of("networkpolicy", ".spec.ingress[0].ports[1].port"), "9000");
    assert_eq!(of("pod", ".metadata.uid"), uid);
    cluster.until("both ports are behind the service", || {
        let mut ports: Vec<String> = behind("ports[*].port").split(' ').map(str::to_owned).collect();
        ports.sort();
        ports == ["8000", "9000"]
    });
    let listed = provider.list(&Owner { project: Some("it".to_owned()), owner: None }).await.unwrap();
    assert_eq!(listed.sandboxes[&id].spec.as_ref(), Some(&spec));
    assert_eq!(listed.sandboxes[&id].notes.len(), 1);
    // The name outlives a stop, and what is behind it does not.
    provider.stop(&id).await.unwrap();
    cluster.until("nothing is behind the service", || behind("addresses[*].ip").is_empty());
    provider.start(&id).await.unwrap();
    let address = of("pod", ".status.podIP");
    cluster.until("the new pod is behind it", || behind("addresses[*].ip") == address);
    // Without ports there is none, and somebody else's is left alone.
    let without = SandboxSpec { ports: Default::default(), ..spec.clone() };
    provider.update(&id, &without, &next(&identity, &without)).await.unwrap();
    assert!(!cluster.inventory().contains(&format!("service/{service}")));
    cluster.says(&["-n", NAMESPACE, "create", "service", "clusterip", &service, "--tcp=1:1"]);
    let refused = provider.update(&id, &spec, &next(&identity, &spec)).await.unwrap_err();
    assert!(matches!(refused, ProviderError::Invalid { .. }) && refused.to_string().contains(&service));
    cluster.says(&["-n", NAMESPACE, "delete", "service", &service]);
    provider.update(&id, &spec, &next(&identity, &spec)).await.unwrap();
    assert!(cluster.inventory().contains(&format!("service/{service}")));
    let other = SandboxSpec { hostname: "other".to_owned(), ..spec.clone() };
    let refused = provider.update(&id, &other, &next(&identity, &other)).await;
    assert!(matches!(refused, Err(ProviderError::Unsupported { .. })), "{refused:?}");
    provider.delete(&id).await.unwrap();
    assert_eq!(cluster.inventory(), Vec::<String>::new());
}

async fn users(provider: &Arc<dyn Provider>) {
    let id = provider.create(&spec(), &identity("users", &spec())).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();
    for (user, seen) in [("dev", "1000 1000 /tmp"), ("1000", "1000 1000 /tmp"), ("root", "0 0 /root")] {
        let mut command = Command::new(["sh", "-c", r#"echo "$(id -u) $(id -g) $HOME""#]);
        command.user = Some(user.to_owned());
        assert_eq!(says(&*guest, &command).await, seen, "{user}");
    }
    let mut command = Command::new(["true"]);
    command.user = Some("nobody-here".to_owned());
    let error = capture(&*guest, &command, &[], 100).await.unwrap_err();
    assert!(error.to_string().contains("no user `nobody-here`"), "{error}");
    provider.delete(&id).await.unwrap();
}

async fn what_never_runs_is_taken_back(cluster: &Cluster, provider: &Arc<dyn Provider>) {
    let spec = SandboxSpec { image: Image::Oci("127.0.0.1:1/no/such:image".to_owned()), ..spec() };
    let error = provider.create(&spec, &identity("never", &spec)).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("no/such"), "{error:?}");
    assert_eq!(cluster.inventory(), Vec::<String>::new());
}

async fn a_pod_that_is_gone_is_told(cluster: &Cluster, provider: &Arc<dyn Provider>) {
    let id = provider.create(&spec(), &identity("gone", &spec())).await.unwrap();
    cluster.says(&["-n", NAMESPACE, "delete", "pod", &id.0]);
    let state = provider.get(&id).await.unwrap().unwrap().state;
    assert!(matches!(&state, SandboxState::Stopped { unclean: Some(_) }), "{state:?}");
    provider.start(&id).await.unwrap();
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Running);
    provider.delete(&id).await.unwrap();
}

fn a_project(cluster: &Cluster) {
    let dir = cluster.dir.path().join("project");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("pocketenv.yaml");
    let text = format!(
        r#"version: 1
name: shop
defaults: {{ provider: kubernetes }}
providers: {{ kubernetes: {{ volume_size: 16Mi }} }}
volumes: {{ data: {{}} }}
sandboxes:
  web:
    image: {IMAGE}
    volumes: [ {{ name: data, path: /data }} ]
    files: [ {{ path: /srv/www/index.html, content: "one" }} ]
    services:
      web:
        command: exec httpd -f -p "$PORT" -h /srv/www
        env: {{ PORT: "8000" }}
        healthcheck: {{ http: {{ port: 8000, path: /index.html }}, interval: 1s, timeout: 5s, start_period: 20s }}
    ports: [8000]
"#
    );
    fs::write(&file, text).unwrap();
    let run = |verb: &[&str], code: i32| {
        let mut args = vec![verb[0], "-f", file.to_str().unwrap()];
        args.extend(&verb[1..]);
        let output = cluster.pocketenv(&args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "pocketenv {args:?}\n{out}\n{err}");
        out.trim_end().to_owned()
    };
    run(&["apply", "--yes"], 0);
    run(&["plan", "--detailed-exitcode"], 0);
    assert_eq!(run(&["exec", "web", "--", "cat", "/srv/www/index.html"], 0), "one");
    run(&["exec", "web", "--", "sh", "-c", "echo kept > /data/kept"], 0);

    // Its pod is gone, and then the whole store.
    let pod = cluster.says(&["-n", NAMESPACE, "get", "pods", "-o", "name"]);
    cluster.says(&["-n", NAMESPACE, "delete", &pod]);
    run(&["plan", "--detailed-exitcode"], 2);
    run(&["apply", "--yes", "--allow-data-loss"], 0);
    run(&["plan", "--detailed-exitcode"], 0);
    assert_eq!(run(&["exec", "web", "--", "cat", "/data/kept"], 0), "kept");
    let before = cluster.inventory();
    fs::remove_dir_all(cluster.dir.path().join("home")).unwrap();
    run(&["apply", "--yes"], 0);
    run(&["plan", "--detailed-exitcode"], 0);
    assert_eq!(cluster.inventory(), before);

    run(&["destroy", "--yes"], 0);
    let left = cluster.inventory();
    assert!(left.len() == 1 && left[0].starts_with("persistentvolumeclaim/pocketenv-shop-data-"), "{left:?}");
    run(&["destroy", "--yes", "--volumes"], 0);
}
