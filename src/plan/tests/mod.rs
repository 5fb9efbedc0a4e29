//! The proof of the planner: a world in memory that carries out plans as the executor does, and what must hold of it.

mod cases;
mod generate;
mod lint;
mod properties;
mod render;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use self::world::{PROJECT, World};
use super::Policy;
use crate::model::*;

/// A sandbox at `alpha` with nothing inside.
fn sandbox() -> DesiredSandbox {
    DesiredSandbox {
        build_secrets: BTreeMap::new(),
        provider: "alpha".into(),
        state: RunState::Running,
        spec: SandboxSpec { image: Image::Oci("debian:13".into()), ..SandboxSpec::default() },
        guest: GuestSpec::default(),
        depends_on: BTreeMap::new(),
        unresolved: BTreeSet::new(),
        drift: DriftPolicy::Heal,
        protect: false,
    }
}

/// `db` with a volume and a checked service; `api` after it with a port, a file, a preset and a service.
fn shop() -> Desired {
    let mut db = sandbox();
    db.spec.mounts.push(Mount { path: "/data".into(), volume: "pgdata".into(), read_only: false });
    db.guest.services.insert("postgres".into(), generate::service_spec("postgres", true));
    let mut api = sandbox();
    api.spec.ports.insert(3000, generate::port_spec(13000));
    api.guest.env.insert("MODE".into(), "production".into());
    api.guest.files.insert("/etc/motd".into(), generate::file(&"hello"));
    let steps = vec![generate::preset_step(1)];
    api.guest.presets.push(PresetSpec { name: "tools".into(), steps });
    api.guest.services.insert("web".into(), generate::service_spec("npm start", false));
    api.depends_on.insert("db".into(), DependencyCondition::Healthy);
    Desired {
        project: PROJECT.into(),
        volumes: BTreeMap::from([(
            "pgdata".into(),
            DesiredVolume { provider: "alpha".into(), protect: false },
        )]),
        sandboxes: BTreeMap::from([("api".into(), api), ("db".into(), db)]),
    }
}

/// The world as `desired` asks for it.
fn applied(desired: &Desired) -> World {
    let mut world = World::new();
    world.converge(desired, &Policy::default(), 1).unwrap();
    world
}

fn named<'d>(desired: &'d mut Desired, name: &str) -> &'d mut DesiredSandbox {
    desired.sandboxes.get_mut(name).unwrap()
}
