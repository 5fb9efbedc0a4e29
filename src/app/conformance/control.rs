//! The control plane: creating, listing, labels, stopping, deleting, volumes.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::timeout;

use super::bench::{Bench, Doing as _, Failure, check, sh, volume_labels};
use super::{Need, Verdict, group};
use crate::model::{
    Address, Identity, Image, Mount, NetworkMode, OwnerId, PortProtocol, PortSpec, SandboxState, SpecHash,
    Timestamp, labels,
};
use crate::provider::{Owner, ProviderError, StopMeaning};

group! {
    "lifecycle/whole": "a sandbox is created running, stops, starts again and is gone once it is deleted", [], whole;
    "lifecycle/repeated": "starting what runs, stopping what is stopped and deleting what is gone is fine", [], repeated;
    "lifecycle/disk-kept": "what is on the disk outlives a stop and a start", [Need::Processes, Need::KeepsDisk], disk_kept;
    "lifecycle/disk-lost": "what is on the disk does not outlive a stop, as the sheet says", [Need::Processes, Need::LosesDisk], disk_lost;
    "lifecycle/processes-end": "no process outlives a stop and a start", [Need::Processes, Need::KeepsDisk], processes_end;
    "lifecycle/paused": "what is paused stands still, refuses commands and goes on with its memory", [Need::Processes, Need::Pause], paused;
    "create/same-token": "creating twice with one token makes one sandbox", [Need::IdempotentCreate], same_token;
    "create/lost-answer": "a create whose answer was lost is found by its token, and nothing exists twice", [], lost_answer;
    "create/many": "creations at the same time make a sandbox each, and the listing has every one of them", [], many;
    "create/apart": "what is written in one sandbox is not in another", [Need::Processes], apart;
    "list/appears": "the listing shows a sandbox after its creation and no longer after its deletion", [], appears;
    "list/filtered": "a listing is of one project and one owner, or of all", [], filtered;
    "labels/round-trip": "the identity is read back as it was written, from the listing and by id", [], round_trip;
    "labels/updated": "an update writes the new identity and keeps the token of the create", [Need::Updates], updated;
    "spec/read-back": "what is read back of the spec is what was asked for", [], read_back;
    "spec/hostname": "the host name inside is the one that was asked for", [Need::Processes, Need::Field("hostname", None)], hostname;
    "spec/no-network": "without a network there is nothing but loopback inside",
        [Need::Processes, Need::Field("network.mode", Some("none"))], no_network;
    "spec/ports-live": "a port that is declared while the sandbox runs is there without a restart", [Need::Live("ports")], ports_live;
    "volumes/kept": "a volume outlives the sandboxes that mount it, is listed with its labels, and is gone once it is deleted",
        [Need::Field("volumes", None)], volumes;
    "snapshots/kept": "a snapshot has the files of its moment, is listed with its labels, is never written over, and stays while something is made from it",
        [Need::Processes, Need::Field("snapshot", None)], snapshots;
    "errors/unknown": "what does not exist is absent by id, and using it is an error that says so", [], unknown;
}

async fn whole(bench: &Bench) -> Verdict {
    let id = bench.create("whole").await?;
    bench.runs(&id, "after its creation").await?;
    bench.stop(&id).await?;
    match bench.get(&id).await? {
        Some(sandbox) => {
            let stopped = matches!(sandbox.state, SandboxState::Stopped { unclean: None });
            check(stopped, || format!("after a stop its state is {:?}", sandbox.state))?;
            bench.start(&id).await?;
            bench.runs(&id, "after its start").await?;
        }
        None => {
            let destroys = bench.sheet().stop == StopMeaning::Destroy;
            check(destroys, || "after a stop it does not exist any more".to_owned())?;
        }
    }
    bench.delete(&id).await?;
    let after = bench.get(&id).await?;
    check(after.is_none(), || format!("after its deletion it is still there: {:?}", after.map(|s| s.state)))
}

async fn repeated(bench: &Bench) -> Verdict {
    let id = bench.create("repeated").await?;
    bench.start(&id).await.doing("starting what runs")?;
    bench.runs(&id, "after it was started while it ran").await?;
    bench.stop(&id).await?;
    if bench.get(&id).await?.is_some() {
        bench.stop(&id).await.doing("stopping what is stopped")?;
    }
    bench.delete(&id).await?;
    bench.delete(&id).await.doing("deleting what is gone")
}

async fn disk_kept(bench: &Bench) -> Verdict {
    let id = bench.create("disk").await?;
    const FILE: &str = "/var/tmp/conformance";
    let guest = bench.guest(&id).await?;
    sh(&*guest, "printf kept > \"$1\" && sync", [FILE]).await?;
    bench.stop(&id).await?;
    bench.start(&id).await?;
    let found = sh(&*bench.guest(&id).await?, "cat \"$1\"", [FILE]).await?;
    check(found == "kept", || format!("the file now holds {found:?}"))
}

async fn disk_lost(bench: &Bench) -> Verdict {
    let id = bench.create("disk").await?;
    const FILE: &str = "/var/tmp/conformance";
    sh(&*bench.guest(&id).await?, "printf kept > \"$1\"", [FILE]).await?;
    bench.stop(&id).await?;
    if bench.get(&id).await?.is_none() {
        return Ok(());
    }
    bench.start(&id).await?;
    let found = sh(&*bench.guest(&id).await?, "cat \"$1\" 2>/dev/null || :", [FILE]).await?;
    check(found.is_empty(), || "the file is still there, and the sheet says that the disk is lost".to_owned())
}

async fn processes_end(bench: &Bench) -> Verdict {
    let id = bench.create("ends").await?;
    // Its standard streams are closed, so that nothing waits for it.
    const BEGIN: &str = "(while :; do sleep 1; date > \"$1\"; done) <&- >&- 2>&- & \
                         n=0; until test -e \"$1\"; do n=$((n + 1)); test $n -lt 30 || exit 1; sleep 1; done";
    const FILE: &str = "/var/tmp/conformance";
    sh(&*bench.guest(&id).await?, BEGIN, [FILE]).await?;
    bench.stop(&id).await?;
    bench.start(&id).await?;
    const AFTER: &str = "rm -f \"$1\"; sleep 3; test -e \"$1\" && echo lives || :";
    let found = sh(&*bench.guest(&id).await?, AFTER, [FILE]).await?;
    check(found.is_empty(), || "a process of before the stop still writes".to_owned())
}

async fn paused(bench: &Bench) -> Verdict {
    let id = bench.create("paused").await?;
    const BEGIN: &str = "(n=0; while :; do n=$((n + 1)); echo $n > \"$1.new\"; mv \"$1.new\" \"$1\"; sleep 0.05; done) <&- >&- 2>&- & \
                         n=0; until test -e \"$1\"; do n=$((n + 1)); test $n -lt 30 || exit 1; sleep 1; done";
    const FILE: &str = "/var/tmp/conformance";
    let number = async || -> Result<u64, Failure> {
        let found = sh(&*bench.guest(&id).await?, "cat \"$1\"", [FILE]).await?;
        found.parse().map_err(|_| Failure::Broken(format!("the file now holds {found:?}")))
    };
    sh(&*bench.guest(&id).await?, BEGIN, [FILE]).await?;
    let before = number().await?;
    bench.pause(&id).await?;
    bench.pause(&id).await.doing("pausing what is paused")?;
    let state = bench.get(&id).await?.map(|sandbox| sandbox.state);
    check(state == Some(SandboxState::Paused), || format!("after a pause its state is {state:?}"))?;
    let guest = bench.guest(&id).await;
    let refused = match guest {
        Ok(guest) => timeout(Duration::from_secs(20), sh(&*guest, "echo ran", [])).await,
        Err(_) => Ok(Err(Failure::Broken(String::new()))),
    };
    check(matches!(refused, Ok(Err(_))), || format!("a command in what is paused: {refused:?}"))?;
    bench.start(&id).await?;
    bench.runs(&id, "after it was resumed").await?;
    let after = number().await?;
    check(after >= before, || format!("it counted to {before}, and after the pause it is at {after}"))?;
    // What stops in the midst of a pause ends.
    bench.pause(&id).await?;
    bench.stop(&id).await?;
    let state = bench.get(&id).await?.map(|sandbox| sandbox.state);
    let stopped = matches!(state, None | Some(SandboxState::Stopped { unclean: None }));
    check(stopped, || format!("after a stop of what was paused its state is {state:?}"))
}

async fn same_token(bench: &Bench) -> Verdict {
    let (spec, identity) = (bench.spec("token"), bench.identity("token"));
    let first = bench.create_as(&spec, &identity).await?;
    let second = bench.create_as(&spec, &identity).await.doing("creating again with the same token")?;
    check(first == second, || format!("two creates with one token made {first} and {second}"))?;
    bench.one_of_a_kind(&identity).await?;
    bench.runs(&first, "after the second create").await
}

async fn lost_answer(bench: &Bench) -> Verdict {
    for pause in [1, 30, 400].map(Duration::from_millis) {
        let name = format!("lost-{}", pause.as_millis());
        let (spec, identity) = (bench.spec(&name), bench.identity(&name));
        // Given up at once, in the middle, or near its end: what it answers is not looked at.
        let _ = timeout(pause, bench.provider().create(&spec, &identity)).await;
        let id = bench.create_again(bench.provider(), &spec, &identity).await?;
        bench.one_of_a_kind(&identity).await?;
        let running = || async {
            let state = bench.look(&id).await?.state;
            Ok(if state == SandboxState::Running { Ok(()) } else { Err(format!("it is {state:?}")) })
        };
        bench.eventually(Duration::from_secs(60), running).await?;
        bench.delete(&id).await?;
    }
    Ok(())
}

async fn many(bench: &Bench) -> Verdict {
    let count = bench.sheet().max_concurrency.clamp(1, 4);
    let identities: Vec<Identity> = (0..count).map(|n| bench.identity(&format!("many-{n}"))).collect();
    let create = |identity: &Identity| {
        let (spec, identity) = (bench.spec(identity.address.sandbox().unwrap_or_default()), identity.clone());
        async move { bench.create_as(&spec, &identity).await }
    };
    let made = try_join_all(identities.iter().map(create)).await?;
    let mut different = made.clone();
    different.sort();
    different.dedup();
    check(different.len() == count, || format!("{count} creations gave the ids {made:?}"))?;
    bench
        .eventually(bench.settle(), || async {
            let listing = bench.listed(bench.project()).await?;
            let missing: Vec<_> = made.iter().filter(|id| !listing.sandboxes.contains_key(id)).collect();
            Ok(if missing.is_empty() { Ok(()) } else { Err(format!("the listing lacks {missing:?}")) })
        })
        .await
}

async fn apart(bench: &Bench) -> Verdict {
    let (one, other) = (bench.create("apart-1").await?, bench.create("apart-2").await?);
    const FILE: &str = "/var/tmp/conformance-apart";
    sh(&*bench.guest(&one).await?, "echo here > \"$1\"", [FILE]).await?;
    let found = sh(&*bench.guest(&other).await?, "cat \"$1\" 2>/dev/null || :", [FILE]).await?;
    check(found.is_empty(), || format!("the other sandbox sees {found:?}"))
}

async fn appears(bench: &Bench) -> Verdict {
    let id = bench.create("appears").await?;
    bench
        .eventually(bench.settle(), || async {
            let listing = bench.listed(bench.project()).await?;
            Ok(match listing.sandboxes.get(&id).map(|s| &s.state) {
                Some(SandboxState::Running) => Ok(()),
                Some(state) => Err(format!("the listing shows it as {state:?}")),
                None => Err("the listing does not show it".to_owned()),
            })
        })
        .await?;
    bench.delete(&id).await?;
    bench
        .eventually(bench.settle(), || async {
            let listing = bench.listed(bench.project()).await?;
            Ok(if listing.sandboxes.contains_key(&id) {
                Err("the listing still shows what was deleted".to_owned())
            } else {
                Ok(())
            })
        })
        .await
}

async fn filtered(bench: &Bench) -> Verdict {
    let ours = bench.identity("filtered");
    let other = Identity { project: format!("{}-b", bench.project()), ..bench.identity("filtered") };
    let spec = bench.spec("filtered");
    let (a, b) = (bench.create_as(&spec, &ours).await?, bench.create_as(&spec, &other).await?);
    let by = |project: &str, owner: Option<&OwnerId>| Owner {
        project: Some(project.to_owned()).filter(|project| !project.is_empty()),
        owner: owner.cloned(),
    };
    let nobody = OwnerId("nobody".to_owned());
    let expected = [
        (by(&ours.project, None), [true, false]),
        (by(&other.project, Some(&other.owner)), [false, true]),
        (by("", Some(&ours.owner)), [true, true]),
        (by("", Some(&nobody)), [false, false]),
    ];
    for (owner, wanted) in &expected {
        bench
            .eventually(bench.settle(), || async {
                let listing = bench.list(owner).await?;
                let shown = [&a, &b].map(|id| listing.sandboxes.contains_key(id));
                let seen =
                    || format!("the listing of {owner:?} has {shown:?} of the two, and not {wanted:?}");
                Ok(if shown == *wanted { Ok(()) } else { Err(seen()) })
            })
            .await?;
    }
    Ok(())
}

/// Names as long and as odd as they may be.
fn odd(bench: &Bench) -> Identity {
    let mut project = format!("{}_0-", bench.project());
    project.extend(std::iter::repeat_n('p', 63 - project.len()));
    Identity {
        address: Address::Sandbox(format!("a_-{}0", "z".repeat(59))),
        project,
        generation: u64::from(u32::MAX),
        expires_at: None,
        ..bench.identity("odd")
    }
}

async fn round_trip(bench: &Bench) -> Verdict {
    for identity in [bench.identity("labels"), odd(bench)] {
        let id = bench.create_as(&bench.spec("labels"), &identity).await?;
        let by_id = bench.look(&id).await?;
        reads_as(&by_id.labels, &identity).doing("by id")?;
        let listed = bench
            .eventually(bench.settle(), || async {
                let mut listing = bench.listed(&identity.project).await?;
                Ok(listing.sandboxes.remove(&id).ok_or_else(|| "the listing does not show it".to_owned()))
            })
            .await?;
        reads_as(&listed.labels, &identity).doing("in the listing")?;
        bench.delete(&id).await?;
    }
    Ok(())
}

fn reads_as(found: &std::collections::BTreeMap<String, String>, wanted: &Identity) -> Result<(), Failure> {
    match Identity::from_labels(found) {
        Ok(Some(identity)) => check(identity == *wanted, || format!("it reads {identity:?}, not {wanted:?}")),
        Ok(None) => Err(Failure::Broken(format!("it is not known as one of ours: {found:?}"))),
        Err(error) => Err(Failure::Broken(error.to_string())),
    }
}

async fn updated(bench: &Bench) -> Verdict {
    let (spec, first) = (bench.spec("update"), bench.identity("update"));
    let id = bench.create_as(&spec, &first).await?;
    let second = Identity {
        spec_hash: SpecHash("0".repeat(64)),
        generation: 2,
        expires_at: first.expires_at.map(|at| Timestamp(at.0 + 1000)),
        ..bench.identity("update")
    };
    bench.update(&id, &spec, &second).await?;
    bench.update(&id, &spec, &second).await.doing("the same update again")?;
    let kept = Identity { intent: first.intent.clone(), ..second };
    reads_as(&bench.look(&id).await?.labels, &kept)?;
    bench.runs(&id, "after an update of nothing but its labels").await
}

async fn read_back(bench: &Bench) -> Verdict {
    let mut spec = bench.spec("read-back");
    if bench.sheet().honours(&["ports"], None) {
        spec.ports.insert(8123, port(bench)?);
    }
    let id = bench.create_as(&spec, &bench.identity("read-back")).await?;
    let found = bench.look(&id).await?.spec;
    // A provider that cannot read back says so by `None`.
    check(found.as_ref().is_none_or(|found| *found == spec), || format!("it reads {found:?}, not {spec:?}"))
}

/// A declared port, with a free port of this host where the provider forwards.
fn port(bench: &Bench) -> Result<PortSpec, Failure> {
    let host_port = if bench.sheet().forwards_from_host { Some(super::ports::free_port()?) } else { None };
    let description = Some("conformance".to_owned());
    Ok(PortSpec { host_port, protocol: PortProtocol::Http, description, ..PortSpec::default() })
}

async fn hostname(bench: &Bench) -> Verdict {
    let spec = bench.spec("named-box");
    let id = bench.create_as(&spec, &bench.identity("named-box")).await?;
    let found = sh(&*bench.guest(&id).await?, "uname -n", []).await?;
    check(found == "named-box", || format!("it is {found:?}"))
}

async fn no_network(bench: &Bench) -> Verdict {
    let mut spec = bench.spec("no-network");
    spec.network.mode = NetworkMode::None;
    let id = bench.create_as(&spec, &bench.identity("no-network")).await?;
    let found = sh(&*bench.guest(&id).await?, "cat /proc/net/dev", []).await?;
    let others: Vec<&str> = found
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        // Tunnels that a kernel makes by itself in every namespace are down and lead nowhere.
        .filter(|name| {
            ![
                "lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0",
                "ip6gre0",
            ]
            .contains(name)
        })
        .collect();
    check(others.is_empty(), || format!("there are the interfaces {others:?}"))
}

async fn ports_live(bench: &Bench) -> Verdict {
    let (mut spec, identity) = (bench.spec("ports-live"), bench.identity("ports-live"));
    let id = bench.create_as(&spec, &identity).await?;
    let before = bench.look(&id).await?;
    spec.ports.insert(8123, port(bench)?);
    bench.update(&id, &spec, &identity).await?;
    let after = bench.look(&id).await?;
    check(after.endpoints.contains_key(&8123), || format!("its ports are {:?}", after.endpoints))?;
    let (before, after) = (before.started_at, after.started_at);
    check(before == after, || format!("it was started at {before:?}, and is now as of {after:?}"))
}

async fn volumes(bench: &Bench) -> Verdict {
    const NAME: &str = "data";
    let power = || {
        let power = bench.provider().volumes();
        power.ok_or_else(|| Failure::Broken("the sheet has volumes, and the provider has none".to_owned()))
    };
    bench.remember_volume(bench.project(), NAME);
    let labels = volume_labels(bench, NAME);
    let power = power()?;
    let create = || power.create_volume(NAME, &labels);
    let delete = || power.delete_volume(bench.project(), NAME);
    bench.answer(create).await.doing("creating a volume")?;
    bench.answer(create).await.doing("creating the same volume again")?;
    let listed = || async {
        let listing = bench.listed(bench.project()).await?;
        Ok::<_, Failure>(listing.volumes.get(NAME).cloned())
    };
    let found = bench
        .eventually(bench.settle(), || async {
            Ok(listed().await?.ok_or_else(|| "the listing does not show the volume".to_owned()))
        })
        .await?;
    let project = found.labels.get(labels::PROJECT);
    check(project == labels.get(labels::PROJECT), || format!("its labels are {:?}", found.labels))?;

    let mut spec = bench.spec("volume");
    spec.mounts = vec![Mount { path: "/data".to_owned(), volume: NAME.to_owned(), read_only: false }];
    let first = bench.create_as(&spec, &bench.identity("volume-1")).await?;
    if bench.sheet().processes {
        let guest = bench.guest(&first).await?;
        sh(&*guest, "printf kept > /data/file && sync", []).await.doing("writing to the volume")?;
    }
    let missing = bench.look(&first).await?.missing_mounts;
    check(missing.is_empty(), || format!("mounts are missing: {missing:?}"))?;
    bench.delete(&first).await?;
    let read_only = bench.sheet().honours(&["volumes", "*", "read_only"], Some("true"));
    spec.mounts.iter_mut().for_each(|mount| mount.read_only = read_only);
    let second = bench.create_as(&spec, &bench.identity("volume-2")).await?;
    if bench.sheet().processes {
        let guest = bench.guest(&second).await?;
        let found = sh(&*guest, "cat /data/file", []).await?;
        check(found == "kept", || format!("the file on the volume holds {found:?}"))?;
        let wrote = sh(&*guest, "(echo x > /data/file) 2>/dev/null && echo wrote || :", []).await?;
        check(wrote.is_empty() == read_only, || match read_only {
            true => "a read-only mount could be written to".to_owned(),
            false => "a mount could not be written to again".to_owned(),
        })?;
    }
    bench.delete(&second).await?;
    bench.answer(delete).await.doing("deleting the volume")?;
    bench.answer(delete).await.doing("deleting a volume that is gone")?;
    bench
        .eventually(bench.settle(), || async {
            Ok(match listed().await? {
                None => Ok(()),
                Some(_) => Err("the listing still shows the volume".to_owned()),
            })
        })
        .await
}

async fn snapshots(bench: &Bench) -> Verdict {
    const NAME: &str = "Kept_1";
    let power = bench.provider().snapshots();
    let power = power
        .ok_or_else(|| Failure::Broken("the sheet has snapshots, and the provider makes none".to_owned()))?;
    let of = bench.create("snapshot").await?;
    let guest = bench.guest(&of).await?;
    sh(&*guest, "printf one > /kept-one && sync", []).await.doing("writing before the snapshot")?;
    let identity = Identity { address: Address::Snapshot(NAME.to_owned()), ..bench.identity(NAME) };
    let mut labels = identity.to_labels();
    labels.insert(labels::SNAPSHOT_OF.to_owned(), Address::Sandbox("snapshot".to_owned()).to_string());
    let create = || power.create_snapshot(&of, NAME, &labels);
    match bench.answer(create).await {
        // Some can keep only what stands still.
        Err(ProviderError::Unsupported { .. } | ProviderError::Invalid { .. }) => {
            bench.stop(&of).await?;
            bench.answer(create).await.doing("taking a snapshot of a stopped sandbox")?;
            bench.start(&of).await?;
        }
        answer => answer.doing("taking a snapshot")?,
    }
    let guest = bench.guest(&of).await?;
    sh(&*guest, "printf two > /kept-one", []).await.doing("writing after the snapshot")?;
    match create().await {
        Err(ProviderError::AlreadyExists { .. }) => {}
        other => return Err(Failure::Broken(format!("a snapshot by a name that is taken: {other:?}"))),
    }
    let address = Address::Snapshot(NAME.to_owned()).to_string();
    let listed = || async {
        let found = bench.listed(bench.project()).await?.snapshots.into_values();
        Ok::<_, Failure>(found.into_iter().find(|s| s.labels.get(labels::ADDRESS) == Some(&address)))
    };
    let found = bench
        .eventually(bench.settle(), || async {
            Ok(listed().await?.ok_or_else(|| "the listing does not show the snapshot".to_owned()))
        })
        .await?;
    for label in [labels::PROJECT, labels::OWNER, labels::SNAPSHOT_OF] {
        check(found.labels.get(label) == labels.get(label), || format!("its labels are {:?}", found.labels))?;
    }

    let mut spec = bench.spec("from-snapshot");
    spec.image = Image::Snapshot(NAME.to_owned());
    let made = bench.create_as(&spec, &bench.identity("from-snapshot")).await?;
    let kept = sh(&*bench.guest(&made).await?, "cat /kept-one", []).await?;
    check(kept == "one", || format!("a sandbox made from it has {kept:?} in the file"))?;
    let delete = || power.delete_snapshot(bench.project(), NAME);
    match delete().await {
        Err(ProviderError::Invalid { .. }) => {}
        other => return Err(Failure::Broken(format!("deleting what a sandbox is made from: {other:?}"))),
    }
    bench.delete(&made).await?;
    bench.answer(delete).await.doing("deleting the snapshot")?;
    bench.answer(delete).await.doing("deleting a snapshot that is gone")?;
    bench
        .eventually(bench.settle(), || async {
            Ok(match listed().await? {
                None => Ok(()),
                Some(_) => Err("the listing still shows the snapshot".to_owned()),
            })
        })
        .await
}

async fn unknown(bench: &Bench) -> Verdict {
    let (spec, identity) = (bench.spec("unknown"), bench.identity("unknown"));
    let id = bench.create_as(&spec, &identity).await?;
    bench.delete(&id).await?;
    let found = bench.get(&id).await?;
    check(found.is_none(), || "get still finds it".to_owned())?;
    let not_found = |what: &str, answer: Result<(), ProviderError>| match answer {
        Err(ProviderError::NotFound { .. }) => Ok(()),
        other => Err(Failure::Broken(format!("{what} something that does not exist answers {other:?}"))),
    };
    not_found("starting", bench.answer(|| bench.provider().start(&id)).await)?;
    not_found("updating", bench.answer(|| bench.provider().update(&id, &spec, &identity)).await)
}
