//! The unit of `dist/` under a systemd that hands control groups of version 2 on: what sandboxes of the controller declare is enforced.

use super::machine::Machine;

const CONFIG: &str = "version: 1
sources:
  - { name: fleet, directory: /srv/fleet, interval: 1s, resync: 1h, allow_data_loss: true }
";

fn manifest(more: &str) -> String {
    format!(
        "version: 1
name: fleet
sandboxes:
  box:
    resources: {{ cpu: 0.5, memory: 64MiB, pids: 60 }}
    services: {{ keeper: {{ command: [sleep, '31536002'] }} }}
{more}"
    )
}

pub(super) fn limits_are_enforced_for_what_the_controller_starts(machine: &Machine) {
    eprintln!("case: the unit of the controller");
    let unit = machine.ok("root", "cat /given/dist/pocketenv-controller.service");
    // As the unit says of itself.
    let steps: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    assert!(steps.len() >= 4, "{unit}");
    let declare = |more: &str| {
        format!("mkdir -p /srv/fleet; cat > /srv/fleet/pocketenv.yaml << 'END'\n{}END", manifest(more))
    };
    machine.ok("root", &declare(""));
    machine.ok(
        "root",
        &format!(
            "mkdir -p install; cd install; cp /given/dist/pocketenv-controller.service .
             cat > controller.yaml << 'END'\n{CONFIG}END\n{}",
            steps.join("\n")
        ),
    );
    let keeper = "pgrep -u pocketenv -f -x 'sleep 31536002'";
    let pid = machine
        .eventually("root", &format!("{keeper} || {{ journalctl -n 20 -u pocketenv-controller; false; }}"));
    let group = machine.ok("root", &format!("cut -d: -f3 /proc/{pid}/cgroup"));
    assert!(group.starts_with("/system.slice/pocketenv-controller.service/pocketenv/box-"), "{group}");
    let held = format!("cd /sys/fs/cgroup{group}; cat cpu.max memory.max pids.max");
    assert_eq!(machine.ok("root", &held), "50000 100000\n67108864\n60");
    let user = machine.ok("root", "id -u pocketenv");
    assert_eq!(
        machine.ok("root", &format!("stat -c %u /proc/{pid}")),
        user,
        "it is nobody's but the service's"
    );

    // It outlives the controller with its limits, and is found again.
    machine.ok("root", "systemctl stop pocketenv-controller");
    assert_eq!(machine.ok("root", &held), "50000 100000\n67108864\n60");
    machine.ok("root", "systemctl start pocketenv-controller");
    machine.ok("root", "sed -i 's/pids: 60/pids: 70/' /srv/fleet/pocketenv.yaml");
    machine.eventually("root", &format!("grep -qx 70 /sys/fs/cgroup{group}/pids.max"));
    assert_eq!(machine.ok("root", keeper), pid, "it was never restarted");

    // Set back, the clock would keep it waiting for days.
    machine.ok("root", "date -s @$(($(date +%s) - 345600))");
    // It goes with its group.
    machine.ok("root", &declare("    state: absent\n"));
    machine.eventually("root", &format!("! {keeper}"));
    machine.eventually("root", &format!("test ! -e /sys/fs/cgroup{group}"));
    machine.ok("root", "systemctl disable --now pocketenv-controller; date -s @$(($(date +%s) + 345600))");
}
