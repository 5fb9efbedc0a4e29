//! What happens to a machine while sandboxes run on it: its clock jumps, it is restarted, its power goes. And file systems that it may have.

use serde_json::Value;

use super::machine::Machine;

const HOME: &str = "export POCKETENV_HOME=/data/home; cd /data/project";

/// Runs a script beside the manifest, with a store that survives the machine.
#[track_caller]
fn ok(machine: &Machine, script: &str) -> String {
    machine.ok("root", &format!("{HOME}; {script}"))
}

#[track_caller]
fn declare(machine: &Machine, boxes: &str) {
    let manifest = format!("version: 1\nname: life\nvolumes: {{ kept: {{}} }}\nsandboxes:\n{boxes}");
    machine.ok(
        "root",
        &format!("mkdir -p /data/project; cat > /data/project/pocketenv.yaml << 'END'\n{manifest}END"),
    );
}

#[track_caller]
fn status(machine: &Machine, address: &str) -> Value {
    let text = ok(machine, "pocketenv status -o json || true");
    let status: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let resources = status["resources"].as_array().unwrap_or_else(|| panic!("{status}"));
    resources
        .iter()
        .find(|resource| resource["address"] == address)
        .unwrap_or_else(|| panic!("{status}"))
        .clone()
}

/// Everything is as declared, each sandbox is there once, and nothing else is.
#[track_caller]
fn assert_whole(machine: &Machine, sandboxes: usize) {
    ok(machine, "pocketenv plan --detailed-exitcode");
    assert_eq!(ok(machine, "ls /data/home/data/engine/boxes | wc -l"), sandboxes.to_string());
    let orphans: Value = serde_json::from_str(&ok(machine, "pocketenv gc -o json || true")).unwrap();
    assert_eq!(orphans["orphans"], serde_json::json!([]), "{orphans}");
}

#[test]
fn sandboxes_survive_what_happens_to_their_machine() {
    let Some(mut machine) = Machine::boot() else { return };
    the_clock_jumps(&machine);
    it_is_restarted(&mut machine);
    its_power_goes_in_the_middle(&mut machine);
    files_are_shared_where_they_can_be(&machine);
}

fn the_clock_jumps(machine: &Machine) {
    eprintln!("case: the clock");
    let service = "services: { web: { command: [sleep, '31536003'], healthcheck: { exec: [test, -e, /], interval: 1s } } }";
    declare(
        machine,
        &format!(
            "  long:\n    lifecycle: {{ ttl: 5h, idle_timeout: 5h }}\n    {service}\n  short:\n    lifecycle: {{ ttl: 45s }}\n"
        ),
    );
    ok(machine, "pocketenv apply --yes");
    let first = ok(machine, "pgrep -f -x 'sleep 31536003'");
    ok(machine, "date -s @$(($(date +%s) + 172800))");
    // Each of these takes a while; whoever believes the clock has ended it by then.
    for _ in 0..5 {
        ok(machine, "pocketenv exec long true");
    }
    assert_eq!(status(machine, "sandbox/long/service/web")["health"], "Healthy");
    ok(machine, "date -s @$(($(date +%s) - 345600))");
    // By the clock it has days left; by what has passed, none.
    machine.eventually("root", "test \"$(ls /data/home/data/engine/boxes | grep -c short)\" = 0");
    assert_eq!(ok(machine, "pgrep -f -x 'sleep 31536003'"), first, "it was never restarted");
    assert_eq!(status(machine, "sandbox/long")["phase"], "Running");
    ok(machine, "date -s @$(($(date +%s) + 172800)); pocketenv destroy --yes");
}

fn it_is_restarted(machine: &mut Machine) {
    eprintln!("case: a restart");
    declare(
        machine,
        "  api:
    volumes: ['kept:/kept']
    ports: [8000]
    services: { web: { command: [sleep, '31536004'] } }
  db:
    state: stopped
",
    );
    ok(machine, "pocketenv apply --yes");
    ok(machine, "pocketenv exec api -- sh -c 'echo root > /root/file; echo volume > /kept/file'");
    machine.reboot();
    let api = status(machine, "sandbox/api");
    assert_ne!(api["phase"], "Running", "{api}");
    assert!(api["message"].as_str().unwrap().contains("the machine restarted"), "{api}");
    ok(machine, "pocketenv apply --yes");
    assert_eq!(ok(machine, "pocketenv exec api -- cat /root/file /kept/file"), "root\nvolume");
    ok(machine, "pgrep -f -x 'sleep 31536004'");
    assert_eq!(status(machine, "sandbox/db")["phase"], "Stopped");
    assert_whole(machine, 2);
}

fn its_power_goes_in_the_middle(machine: &mut Machine) {
    eprintln!("case: a power cut");
    ok(machine, "pocketenv exec api -- sh -c 'echo synced > /kept/synced; sync -f /kept'");
    let more: String = (0..8)
        .map(|n| format!("  more-{n}:\n    files: [{{ path: /etc/which, content: '{n}' }}]\n"))
        .collect();
    let api = "  api:\n    volumes: ['kept:/kept']\n    ports: [8000]\n    services: { web: { command: [sleep, '31536004'] } }\n";
    declare(machine, &format!("{api}{more}"));
    ok(machine, "sync; nohup pocketenv apply --yes --allow-data-loss > /tmp/apply 2>&1 < /dev/null &");
    machine.eventually("root", "test \"$(ls /data/home/data/engine/boxes | grep -c more)\" -ge 3");
    machine.cut_power();
    let made = ok(machine, "ls /data/home/data/engine/boxes | wc -l");
    eprintln!("{made} sandboxes were there");
    ok(machine, "pocketenv apply --yes --allow-data-loss");
    assert_whole(machine, 9);
    for n in 0..8 {
        assert_eq!(ok(machine, &format!("pocketenv exec more-{n} -- cat /etc/which")), n.to_string());
    }
    assert_eq!(ok(machine, "pocketenv exec api -- cat /kept/synced"), "synced");
    ok(machine, "pocketenv destroy --yes --volumes");
    assert_eq!(machine.run("root", "pgrep -f __engine-shim").code, 1);
}

fn files_are_shared_where_they_can_be(machine: &Machine) {
    for (kind, make) in [("btrfs", "mkfs.btrfs -q"), ("xfs", "mkfs.xfs -q -m reflink=1")] {
        eprintln!("case: {kind}");
        declare(machine, "  box: {}\n");
        machine.ok(
            "root",
            &format!("modprobe loop; truncate -s 600M /data/{kind}; {make} /data/{kind}; mkdir -p /mnt/{kind}; mount -o loop /data/{kind} /mnt/{kind}"),
        );
        let on_it = |script: &str| {
            machine.ok("root", &format!("export POCKETENV_HOME=/mnt/{kind}/home; cd /data/project; {script}"))
        };
        let used = || -> u64 {
            on_it(&format!("sync; df --output=used -B1 /mnt/{kind} | tail -1")).trim().parse().unwrap()
        };
        const SIZE: u64 = 48 << 20;
        on_it("pocketenv apply --yes");
        on_it(&format!("pocketenv exec box -- sh -c 'head -c {SIZE} /dev/urandom > /root/large'"));
        let hash = on_it("pocketenv exec box -- sha256sum /root/large");
        let before = used();
        on_it("pocketenv stop box; pocketenv snapshot create box one; pocketenv fork box --count 2");
        let grown = used().saturating_sub(before);
        eprintln!("{kind}: a snapshot and two forks of {SIZE} bytes took {grown}");
        assert!(grown < SIZE / 2, "{grown}");
        // Each is its own from then on.
        on_it("pocketenv exec box-fork-1 -- sh -c 'echo changed > /root/large'");
        for sandbox in ["box", "box-fork-2"] {
            on_it(&format!("pocketenv start {sandbox}"));
            assert_eq!(on_it(&format!("pocketenv exec {sandbox} -- sha256sum /root/large")), hash);
        }
        on_it("pocketenv destroy --yes --volumes; pocketenv gc --delete --yes");
        machine.ok("root", &format!("umount /mnt/{kind}"));
    }
}
