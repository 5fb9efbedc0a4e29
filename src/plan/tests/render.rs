//! What people see of a plan.

use super::world::World;
use super::{applied, named, shop};
use crate::model::*;
use crate::plan::report::{dot, human, markdown};
use crate::plan::{Plan, Policy, plan};

fn text(plan: &Plan) -> String {
    human(plan).into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n")
}

/// A plan with the places that a manifest would give.
fn located(world: &World, desired: &Desired) -> Plan {
    let observed = world.observe(desired);
    let origin = |address: &Address, field: &str| {
        let line = 10 + u32::try_from(address.to_string().len() + field.len()).unwrap();
        Some(Location { file: "pocketenv.yaml".into(), line, column: 5 })
    };
    world.with_input(desired, &Policy::default(), &observed, |input| {
        plan(&crate::plan::PlanInput { origin: &origin, ..*input })
    })
}

#[test]
fn a_create() {
    let plan = located(&World::new(), &shop());
    insta::assert_snapshot!(text(&plan), @r#"
    + create    volume/pgdata
          declared and does not exist (pocketenv.yaml:23:5)
    + create    sandbox/api
          declared and does not exist (pocketenv.yaml:21:5)
    + create    sandbox/db
          declared and does not exist (pocketenv.yaml:20:5)
    + create    sandbox/api/env
          declared and does not exist (pocketenv.yaml:24:5)
    + create    sandbox/api/file/etc/motd
          declared and does not exist (pocketenv.yaml:35:5)
    + create    sandbox/api/preset/tools
          declared and does not exist (pocketenv.yaml:34:5)
    + create    sandbox/api/service/web
          declared and does not exist (pocketenv.yaml:33:5)
    + create    sandbox/db/service/postgres
          declared and does not exist (pocketenv.yaml:37:5)
    Plan: 8 to create.
    "#);
    insta::assert_snapshot!(dot(&plan), @r#"
    digraph plan {
      rankdir=LR;
      node [shape=box];
      s0 [label="create volume/pgdata"];
      s1 [label="create sandbox/db"];
      s0 -> s1;
      s2 [label="start sandbox/db/service/postgres"];
      s1 -> s2;
      s3 [label="wait for sandbox/db/service/postgres"];
      s2 -> s3;
      s4 [label="create sandbox/api"];
      s5 [label="set up sandbox/api"];
      s4 -> s5;
      s6 [label="run sandbox/api/preset/tools"];
      s1 -> s6;
      s2 -> s6;
      s3 -> s6;
      s5 -> s6;
      s7 [label="start sandbox/api/service/web"];
      s1 -> s7;
      s2 -> s7;
      s3 -> s7;
      s6 -> s7;
      s8 [label="wait for sandbox/api/service/web"];
      s7 -> s8;
    }
    "#);
}

#[test]
fn nothing_to_do() {
    insta::assert_snapshot!(text(&located(&applied(&shop()), &shop())), @r#"
    No changes. What exists is what is desired.
    "#);
}

#[test]
fn fields_that_change() {
    let world = applied(&shop());
    let mut desired = shop();
    let api = named(&mut desired, "api");
    api.spec.ports.insert(9090, super::generate::port_spec(19090));
    api.guest.env.insert("MODE".into(), "test".into());
    api.guest.files.remove("/etc/motd");
    api.guest.services.get_mut("web").unwrap().command = vec!["npm".into(), "test".into()];
    insta::assert_snapshot!(text(&located(&world, &desired)), @r#"
    ~ update    sandbox/api
          ports.9090: (none) → {"host_port":19090,"protocol":"tcp","public":false,"description":null} (pocketenv.yaml:31:5)
    ~ update    sandbox/api/env
          env.MODE: "production" → "test" (pocketenv.yaml:29:5)
    - delete    sandbox/api/file/etc/motd
          no longer declared
    ~ restart   sandbox/api/service/web
          command: ["sh","-c","npm start"] → ["npm","test"] (pocketenv.yaml:40:5)
          env.MODE: "production" → "test" (pocketenv.yaml:29:5)
    Plan: 2 to update, 1 to restart, 1 to delete.
    "#);
}

#[test]
fn a_recreate_puts_data_at_risk() {
    let world = applied(&shop());
    let mut desired = shop();
    named(&mut desired, "db").spec.image = Image::Oci("postgres:17|<latest>".into());
    let plan = located(&world, &desired);
    insta::assert_snapshot!(text(&plan), @r#"
    ± recreate  sandbox/db
          image: "debian:13" → "postgres:17|<latest>" (pocketenv.yaml:25:5)
        ! loses everything written in sandbox `db` outside its volumes
    + create    sandbox/db/service/postgres
          declared and does not exist (pocketenv.yaml:37:5)
    Plan: 1 to create, 1 to recreate.
    "#);
    insta::assert_snapshot!(markdown(&plan), @r#"
    ### Plan for `shop`

    Plan: 1 to create, 1 to recreate.

    | | resource | why | data at risk |
    |---|---|---|---|
    | recreate | `sandbox/db` | image: "debian:13" → "postgres:17\|\<latest\>" (pocketenv.yaml:25:5) | everything written in sandbox `db` outside its volumes |
    | create | `sandbox/db/service/postgres` | declared and does not exist (pocketenv.yaml:37:5) |  |
    "#);
}

#[test]
fn drift_and_an_orphan() {
    let mut world = applied(&shop());
    let (id, copy) =
        world.ours().find(|(_, s)| s.name() == "api").map(|(_, s)| (s.seen.id.clone(), s.clone())).unwrap();
    world.now += 1;
    world.insert("alpha", copy.seen.labels.clone(), &copy.spec).unwrap();
    let api = world.vendors.get_mut("alpha").unwrap().sandboxes.get_mut(&id).unwrap();
    api.guest.files.get_mut("/etc/motd").unwrap().state = FileState::Modified;
    api.guest.services.get_mut("web").unwrap().state = ServiceStatus::Dead;
    api.silent_ports.insert(3000);
    insta::assert_snapshot!(text(&located(&world, &shop())), @r#"
    ~ update    sandbox/api/file/etc/motd
          drifted: its content or mode was changed
    ~ start     sandbox/api/service/web
          drifted: it was killed together with its supervisor
    ~ update    sandbox/api/port/3000
          drifted: port 3000 is not listening on the host
      note: box-0007 at provider `alpha` claims to be sandbox/api and is not; it is left alone
    Plan: 2 to update, 1 to start.
    "#);
    let mut desired = shop();
    named(&mut desired, "api").drift = DriftPolicy::Warn;
    insta::assert_snapshot!(text(&located(&world, &desired)), @r#"
      note: box-0007 at provider `alpha` claims to be sandbox/api and is not; it is left alone
      note: sandbox/api/port/3000 drifted and is left as it is: port 3000 is not listening on the host
      note: sandbox/api/file/etc/motd drifted and is left as it is: its content or mode was changed
      note: sandbox/api/service/web drifted and is left as it is: it was killed together with its supervisor
    Nothing to do. 3 drifted and left as the manifest says.
    "#);
}

#[test]
fn what_waits() {
    let mut desired = shop();
    let mut world = applied(&desired);
    world.vendors.get_mut("alpha").unwrap().down = true;
    named(&mut desired, "api").provider = "beta".into();
    insta::assert_snapshot!(markdown(&located(&world, &desired)), @r#"
    ### Plan for `shop`

    Plan: 3 waiting.

    - `volume/pgdata` waits: provider `alpha` could not be observed: it does not answer
    - `sandbox/db` waits: provider `alpha` could not be observed: it does not answer
    - `sandbox/api` waits: provider `alpha` could not be observed: it does not answer
    "#);
}

#[test]
fn what_others_say_cannot_forge_a_line_or_a_cell() {
    let mut world = applied(&shop());
    for sandbox in world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut() {
        sandbox.seen.state = SandboxState::Failed("\u{1b}[2Jfull | gone\n- sandbox/api `x`".into());
    }
    let plan = located(&world, &shop());
    for line in human(&plan) {
        assert!(!line.text.contains(char::is_control), "{:?}", line.text);
    }
    let table = markdown(&plan);
    assert!(!table.contains('\u{1b}') && !table.contains("\n- sandbox"), "{table}");
    for row in table.lines().filter(|line| line.starts_with('|')) {
        assert_eq!(row.replace("\\|", "").matches('|').count(), 5, "{row}");
    }
}
