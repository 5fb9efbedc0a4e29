//! Ways out of a sandbox, tried where most of them are open.

use std::collections::BTreeMap;

use pocketenv::guest::{IsolationVerdict, try_isolation};
use pocketenv::model::{Egress, NetworkSpec, SandboxSpec};

use super::room::Room;

fn spec() -> SandboxSpec {
    let network = NetworkSpec { egress: Some(Egress::Deny), ..NetworkSpec::default() };
    SandboxSpec { network, ..SandboxSpec::default() }
}

/// The room of these tests keeps files and processes to itself and nothing else: it is root of the machine, in its network, without a filter.
#[tokio::test]
async fn what_is_open_is_found_open() {
    for room in [Room::new(), Room::busybox()] {
        let Some(room) = room else { continue };
        let checks = try_isolation(&room, &spec()).await.unwrap();
        let verdicts: BTreeMap<&str, IsolationVerdict> =
            checks.iter().map(|check| (check.name.as_str(), check.verdict)).collect();
        for open in [
            "root",
            "new-privileges",
            "system-calls",
            "capabilities",
            "mounts",
            "namespaces",
            "kernel-settings",
            "interfaces",
        ] {
            assert_eq!(verdicts[open], IsolationVerdict::Broken, "{open}: {checks:#?}");
        }
        assert_eq!(verdicts["processes"], IsolationVerdict::Held, "it has a process namespace: {checks:#?}");
        assert!(verdicts.contains_key("egress-rules") && verdicts.contains_key("passwords"), "{checks:#?}");
    }
}
