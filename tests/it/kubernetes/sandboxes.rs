//! Clusters that have `Sandbox` objects: sandboxes are those, and their pods are made by a controller that is not ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pocketenv::model::{PortSpec, SandboxSpec, SandboxState};
use pocketenv::provider::{Command, Owner, Provider, ProviderError, capture};

use super::agents::{Agents, RESOURCE, Versions};
use super::cluster::{says, spec};
use super::support::{Cluster, NAMESPACE};
use crate::conformance::kubernetes::keeps;
use crate::docker::support::{identity, next};

/// One cluster, which learns of them by and by.
#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_what_the_cluster_calls_so() {
    let Some(cluster) = Cluster::start() else { return };
    let before = cluster.provider().await;
    let old = before.create(&spec(), &identity("old", &spec())).await.unwrap();

    let agents = Agents::install(&cluster, Versions::Alpha).await;
    let provider = cluster.provider().await;
    let new = provider.create(&spec(), &identity("new", &spec())).await.unwrap();
    assert_eq!(agents.inventory(), [format!("sandbox.agents.x-k8s.io/{new}")]);
    // What was made before has not become something else.
    let listed = provider.list(&Owner { project: Some("it".to_owned()), owner: None }).await.unwrap();
    let states: Vec<_> = [&old, &new].iter().map(|id| listed.sandboxes[*id].state.clone()).collect();
    assert_eq!(states, [SandboxState::Running, SandboxState::Running]);
    let (old_goes, new_goes) = tokio::join!(provider.delete(&old), provider.delete(&new));
    old_goes.unwrap();
    new_goes.unwrap();
    assert_eq!(cluster.inventory(), Vec::<String>::new());
    keeps(&cluster, &["lifecycle/whole", "labels/updated", "create/same-token"]).await;
    agents.remove();

    let agents = Agents::install(&cluster, Versions::Beta).await;
    what_is_made(&cluster, &cluster.provider().await).await;
    what_the_controller_complains_of(&cluster, &cluster.provider().await).await;
    let promises =
        ["lifecycle/disk-lost", "labels/updated", "create/many", "list/filtered", "spec/ports", "volumes/"];
    keeps(&cluster, &promises).await;
    crate::portable::at_cluster(&cluster).await;
    agents.remove();
}

async fn what_is_made(cluster: &Cluster, provider: &Arc<dyn Provider>) {
    let mut spec = SandboxSpec { hostname: "front".to_owned(), ..spec() };
    spec.ports.insert(8000, PortSpec::default());
    let identity = identity("api", &spec);
    let id = provider.create(&spec, &identity).await.unwrap();
    let of = |kind: &str, path: &str| {
        cluster.says(&["-n", NAMESPACE, "get", kind, &id.0, "-o", &format!("jsonpath={{{path}}}")])
    };
    assert_eq!(of("pod", ".metadata.ownerReferences[0].kind"), "Sandbox");
    assert_eq!(of("networkpolicy", ".metadata.ownerReferences[0].kind"), "Sandbox");
    assert_eq!(of(RESOURCE, ".apiVersion"), "agents.x-k8s.io/v1beta1");
    assert_eq!(of(RESOURCE, ".spec.operatingMode"), "Running");
    assert!(!cluster.inventory().iter().any(|name| name.starts_with("configmap/")));
    let guest = provider.guest(&id).await.unwrap();
    assert_eq!(says(&*guest, &Command::new(["hostname"])).await, "front");
    // The policy selects the pod that the controller made.
    let policy = of("networkpolicy", r".spec.podSelector.matchLabels.pocketenv\.io/sandbox");
    assert_eq!(policy, of("pod", r".metadata.labels.pocketenv\.io/sandbox"));

    // Ports change while it runs; the pod stays.
    let uid = || of("pod", ".metadata.uid");
    let first = uid();
    spec.ports.insert(9000, PortSpec::default());
    provider.update(&id, &spec, &next(&identity, &spec)).await.unwrap();
    assert_eq!(of("networkpolicy", ".spec.ingress[0].ports[1].port"), "9000");
    assert_eq!(uid(), first);
    let other = SandboxSpec { hostname: "other".to_owned(), ..spec.clone() };
    let refused = provider.update(&id, &other, &next(&identity, &other)).await;
    assert!(matches!(refused, Err(ProviderError::Unsupported { .. })), "{refused:?}");

    // A pod that is gone comes back by itself, empty; one that has ended does not.
    cluster.says(&["-n", NAMESPACE, "delete", "pod", &id.0]);
    cluster.until("the controller has made another pod", || {
        let phase =
            cluster.kubectl(&["-n", NAMESPACE, "get", "pod", &id.0, "-o", "jsonpath={.status.phase}"]);
        phase.stdout == b"Running"
    });
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Running);
    let second = uid();
    assert_ne!(second, first);
    let guest = provider.guest(&id).await.unwrap();
    // It ends with everything else inside.
    let _ = capture(&*guest, &Command::new(["sh", "-c", "kill -s TERM 1"]), &[], 100).await;
    cluster.until("the pod has ended", || of("pod", ".status.phase") == "Succeeded");
    let state = provider.get(&id).await.unwrap().unwrap().state;
    assert!(matches!(&state, SandboxState::Stopped { unclean: Some(_) }), "{state:?}");
    provider.start(&id).await.unwrap();
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Running);
    assert_ne!(uid(), second);
    provider.delete(&id).await.unwrap();
    assert_eq!(cluster.inventory(), Vec::<String>::new());
}

/// Why there is no pod stands at the `Sandbox` alone.
async fn what_the_controller_complains_of(cluster: &Cluster, provider: &Arc<dyn Provider>) {
    cluster.says(&["-n", NAMESPACE, "create", "quota", "none", "--hard=pods=0"]);
    let identity = identity("over", &spec());
    let create = tokio::spawn({
        let (provider, identity) = (Arc::clone(provider), identity.clone());
        async move { provider.create(&spec(), &identity).await }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let id = loop {
        assert!(Instant::now() < deadline, "nothing is told of the quota");
        let listed = provider.list(&Owner { project: Some("it".to_owned()), owner: None }).await.unwrap();
        let told = listed
            .sandboxes
            .into_values()
            .find(|s| s.notes.iter().any(|note| note.contains("exceeded quota")));
        match told {
            Some(sandbox) => {
                assert_eq!(sandbox.state, SandboxState::Creating);
                break sandbox.id;
            }
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    create.abort();
    let _ = create.await;
    // Once it is allowed, the same create goes on.
    cluster.says(&["-n", NAMESPACE, "delete", "quota", "none"]);
    assert_eq!(provider.create(&spec(), &identity).await.unwrap(), id);
    provider.delete(&id).await.unwrap();
}
