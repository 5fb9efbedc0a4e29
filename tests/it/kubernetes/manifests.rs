//! What is shipped to run the controller in a cluster.

use std::path::Path;

use super::support::Cluster;

const ACCOUNT: &str = "system:serviceaccount:pocketenv:pocketenv-controller";

/// The API server takes every object, and the controller's account may do what the provider does, and nothing else.
pub fn grant_what_is_needed_and_no_more(cluster: &Cluster) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/kubernetes/controller.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    // Nothing here has the image, so its pod would only wait.
    assert!(text.contains("  replicas: 1\n"));
    let copy = cluster.dir.path().join("controller.yaml");
    std::fs::write(&copy, text.replace("  replicas: 1\n", "  replicas: 0\n")).unwrap();
    let applied = cluster.says(&["apply", "--server-side", "-f", copy.to_str().unwrap()]);
    assert_eq!(applied.lines().count(), text.split("\n---\n").count(), "{applied}");

    let can = |namespace: &str, verb: &str, resource: &str| {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let sub = format!("--subresource={sub}");
        let args = ["auth", "can-i", verb, resource, &sub, "-n", namespace, "--as", ACCOUNT];
        let output = cluster.kubectl(&args);
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => true,
            "no" => false,
            _ => panic!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    };
    const SANDBOXES: &str = "pocketenv-sandboxes";
    let granted = [
        ("list", "configmaps"),
        ("watch", "configmaps"),
        ("patch", "configmaps"),
        ("list", "pods"),
        ("create", "pods"),
        ("delete", "pods"),
        ("get", "pods/exec"),
        ("create", "pods/exec"),
        ("get", "pods/portforward"),
        ("patch", "networkpolicies.networking.k8s.io"),
        ("delete", "persistentvolumeclaims"),
        ("list", "services"),
        ("patch", "services"),
        ("delete", "services"),
    ];
    for (verb, resource) in granted {
        assert!(can(SANDBOXES, verb, resource), "it may not {verb} {resource}");
        for elsewhere in ["pocketenv", "default", "kube-system"] {
            assert!(!can(elsewhere, verb, resource), "it may {verb} {resource} in {elsewhere}");
        }
    }
    for (verb, resource) in [
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "rolebindings.rbac.authorization.k8s.io"),
        ("update", "pods"),
        ("create", "serviceaccounts/token"),
        ("list", "nodes"),
    ] {
        for namespace in [SANDBOXES, "pocketenv", "default", "kube-system"] {
            assert!(!can(namespace, verb, resource), "it may {verb} {resource} in {namespace}");
        }
    }
}
