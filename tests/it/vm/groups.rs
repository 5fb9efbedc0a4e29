//! Limits and pauses by control groups of version 2: as root, and as an ordinary user by scopes of the user's systemd.

use super::machine::Machine;

/// What the engine's own tests show where there are control groups.
const LIMITS: [&str; 4] = [
    "engine::limits::memory_ends_what_takes_too_much_and_nothing_else",
    "engine::limits::too_many_processes_cannot_be_started",
    "engine::limits::a_busy_loop_gets_its_share_of_a_processor",
    "engine::limits::no_group_outlives_its_sandbox",
];
const OF_ROOT: [&str; 4] = [
    "engine::disk::reading_and_writing_take_their_time",
    "engine::limits::limits_change_while_it_runs",
    "engine::pause::what_is_paused_stands_still_and_goes_on",
    "engine::pause::what_is_paused_stops_is_deleted_and_dies_like_any_other",
];
const MANIFEST: &str = "version: 1
name: fleet
sandboxes:
  box:
    resources: { cpu: 0.5, memory: 64MiB, pids: 60 }
    services:
      keeper: { command: [sleep, '31536001'] }
";

#[test]
fn limits_are_enforced_by_control_groups_of_version_two() {
    let Some(machine) = Machine::boot() else { return };
    assert_eq!(machine.ok("root", "stat -fc %T /sys/fs/cgroup"), "cgroup2fs");

    eprintln!("case: root");
    // On a disk, which can be held back.
    machine.tests("root", "/data", &[&LIMITS[..], &OF_ROOT].concat());
    assert_eq!(machine.ok("root", "find /sys/fs/cgroup -name 'pocketenv*'"), "", "nothing is left");

    eprintln!("case: an ordinary user");
    machine.tests("ann", "/tmp", &LIMITS);
    machine.eventually("ann", "test -z \"$(find /sys/fs/cgroup -name 'pocketenv*')\"");
    a_scope_lives_as_long_as_its_sandbox(&machine);

    super::unit::limits_are_enforced_for_what_the_controller_starts(&machine);

    eprintln!("case: what is not handed on is named");
    machine.ok(
        "root",
        "mkdir -p /run/systemd/system/user@.service.d
         printf '[Service]\\nDelegate=\\nDelegate=memory pids\\n' > /run/systemd/system/user@.service.d/few.conf
         systemctl daemon-reload; systemctl restart user@1000",
    );
    let refused = machine.run("ann", "cd fleet && pocketenv apply --yes");
    assert_ne!(refused.code, 0, "{refused:?}");
    for part in ["cpu cannot be limited here", "no controller `cpu`", "user@.service.d/delegate.conf"] {
        assert!(refused.stderr.contains(part), "{part} in {}", refused.stderr);
    }
    assert_eq!(machine.run("ann", "pgrep -x sleep").code, 1, "nothing runs without its limits");

    eprintln!("case: without a systemd of the user");
    machine.ok("root", "systemctl stop user@1000");
    let refused = machine.run("ann", "cd fleet && pocketenv apply --yes");
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("loginctl enable-linger"), "{}", refused.stderr);
}

fn a_scope_lives_as_long_as_its_sandbox(machine: &Machine) {
    eprintln!("case: a scope");
    let apply = format!(
        "mkdir -p fleet; cat > fleet/pocketenv.yaml << 'END'\n{MANIFEST}END\ncd fleet && pocketenv apply --yes"
    );
    machine.ok("ann", &apply);
    let inside = "/proc/$(pgrep -x sleep | head -1)/cgroup";
    let group = machine.ok("ann", &format!("cut -d: -f3 {inside}"));
    let scope = group.split('/').find(|part| part.starts_with("pocketenv-") && part.ends_with(".scope"));
    let scope = scope.unwrap_or_else(|| panic!("no scope in {group}"));
    assert!(group.starts_with("/user.slice/user-1000.slice/user@1000.service/"), "{group}");
    let held = format!("cd /sys/fs/cgroup{group}; cat cpu.max memory.max pids.max");
    let limits = "50000 100000\n67108864\n60";
    assert_eq!(machine.ok("ann", &held), limits);
    let status = machine.ok("ann", "cd fleet && pocketenv status -o json || true");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let conditions = status["resources"][0]["conditions"].as_array().unwrap();
    let enforced = conditions.iter().find(|condition| condition["type"] == "LimitsEnforced").unwrap();
    assert_eq!(
        (&enforced["status"], &enforced["message"]),
        (&"True".into(), &"cpu, memory, pids by cgroup v2".into())
    );
    // The systemd that was asked leaves it alone.
    machine.ok("ann", "systemctl --user daemon-reload");
    assert_eq!(machine.ok("ann", &held), limits);
    assert_eq!(machine.ok("ann", &format!("systemctl --user is-active {scope}")), "active");
    // Others change it while it runs.
    machine.ok("ann", "cd fleet && sed -i 's/pids: 60/pids: 70/' pocketenv.yaml && pocketenv apply --yes");
    assert_eq!(machine.ok("ann", &held), "50000 100000\n67108864\n70");
    machine.ok("ann", "cd fleet && pocketenv pause box");
    let frozen = format!(
        "grep -q 'frozen 1' /sys/fs/cgroup{group}/cgroup.events || cat /sys/fs/cgroup{group}/cgroup.events"
    );
    assert_eq!(machine.ok("ann", &frozen), "");
    machine.ok("ann", "cd fleet && pocketenv resume box && pocketenv exec box true");
    // It goes with the sandbox.
    machine.ok("ann", "cd fleet && pocketenv destroy --yes");
    machine.eventually("ann", &format!("! systemctl --user is-active {scope}"));
    machine.eventually("ann", "test -z \"$(find /sys/fs/cgroup -name 'pocketenv*')\"");
}
