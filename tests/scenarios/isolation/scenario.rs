//! What runs inside sees a machine of its own: nothing private of the host, of its loopback or of other sandboxes.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use pocketenv::engine::{Engine, EngineConfig};

use crate::scenarios::world::{World, program};

/// Connects to a port of the loopback inside and says how that went.
const DIAL: &str = "import socket,sys
try:
    socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)
    print('reached')
except OSError as error:
    print('refused')";

#[test]
fn isolation() {
    let world = World::scenario("isolation");
    world.apply();
    let inside = |script: &str| world.sh("box", script);
    let dial = |sandbox: &str, port: u16| {
        world
            .run(&["exec", sandbox, "--", "python3", "-c", DIAL, &port.to_string()])
            .ends(0)
            .stdout
            .trim()
            .to_owned()
    };

    // processes: its own only
    let processes = inside("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done");
    assert!(
        processes.contains("http.server 7000") && !processes.contains("7001") && !processes.contains("40000"),
        "{processes}"
    );
    assert_eq!(inside("cat /proc/sys/kernel/hostname"), "box");

    // privileges: none to gain
    assert_eq!(
        inside("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'"),
        "NoNewPrivs:1\nSeccomp:2"
    );
    let bounding = u64::from_str_radix(&inside("sed -n 's/^CapBnd:\\t//p' /proc/self/status"), 16).unwrap();
    for (name, bit) in [
        ("sys_admin", 21),
        ("sys_module", 16),
        ("sys_rawio", 17),
        ("sys_ptrace", 19),
        ("net_admin", 12),
        ("sys_boot", 22),
    ] {
        assert_eq!(bounding >> bit & 1, 0, "capability {name} is in the bounding set");
    }
    assert_eq!(inside("unshare -m true 2>/dev/null || echo refused"), "refused");
    assert_eq!(inside("mount -t tmpfs none /mnt 2>/dev/null || echo refused"), "refused");

    // files: system directories to read, its own to write, nothing private of the host
    let home = world.project();
    assert_eq!(inside(&format!("ls {} 2>/dev/null || echo nothing", home.display())), "nothing");
    assert_eq!(inside("touch /usr/local/bin/pocketenv-mine && echo written"), "written");
    assert!(!std::path::Path::new("/usr/local/bin/pocketenv-mine").exists(), "a write inside stays inside");
    assert_eq!(inside("cat /etc/shadow 2>/dev/null | wc -c"), "0");
    assert_eq!(
        inside("head -c1 /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware 2>/dev/null | wc -l"),
        "0\n0"
    );
    assert_eq!(inside("echo 1 > /proc/sys/kernel/panic 2>/dev/null || echo refused"), "refused");
    assert_eq!(inside("ls /root /home | tr '\\n' ' '").trim(), "/home:  /root:");
    assert_eq!(inside("find /dev -type b | wc -l"), "0");

    // network: neither the host's loopback nor the neighbour's
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    assert_eq!(dial("box", 7000), "reached", "its own");
    assert_eq!(dial("box", port), "refused", "the host's loopback");
    assert_eq!(dial("box", 7001), "refused", "the neighbour's");
    // also not through the way out
    let through = inside(&format!(
        "curl -s -o /dev/null -m 5 -w '%{{http_code}}' http://127.0.0.1:{port}/ --noproxy '' || true"
    ));
    assert_ne!(through, "200");
    host.set_nonblocking(true).unwrap();
    assert!(host.accept().is_err(), "nothing came through");

    // a mentioned port, and no other, is linked; at the address it has on the host
    let address = world.endpoint("box", 7000);
    assert_eq!(world.sh("linked", "echo $BOX"), address.to_string());
    assert_eq!(dial("linked", address.port()), "reached");
    assert_eq!(dial("linked", 7000), "refused");
    assert_eq!(dial("neighbour", address.port()), "refused");

    // no network at all
    assert_eq!(world.sh("lonely", "cat /proc/net/dev | grep -c :"), "1");
    assert_eq!(world.sh("lonely", "env | grep -ci proxy || true"), "0");

    // the same by the program's own means, which find nothing open
    for sandbox in ["box", "lonely"] {
        let verified = world.run(&["doctor", "--isolation", sandbox, "-o", "json"]).ends(0).json();
        assert_eq!(verified["condition"]["type"], "PolicyVerified");
        assert_eq!(verified["condition"]["status"], "True", "{verified:#}");
    }

    // An engine that was made to hold less than is declared is found out by the same means.
    let record = world.box_dir("lonely").join("state.json");
    let good = fs::read_to_string(&record).unwrap();
    let bad = good.replacen("\"network\":\"none\"", "\"network\":\"host\"", 1);
    assert_ne!(good, bad, "{good}");
    let (id, home) = (world.id("lonely"), world.home());
    let (data_dir, runtime_dir) = (home.join("data"), home.join("run"));
    let engine = Engine::new(EngineConfig { data_dir, runtime_dir, exe: program() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (text, code, status) in [(bad, 1, "False"), (good, 0, "True")] {
        // Not by the command line, which would put it right.
        let restarted = async {
            engine.stop(&id, Duration::from_secs(5)).await?;
            fs::write(&record, text).unwrap();
            engine.start(&id).await
        };
        runtime.block_on(restarted).unwrap();
        let verified = world.run(&["doctor", "--isolation", "lonely", "-o", "json"]).ends(code).json();
        assert_eq!(verified["condition"]["status"], status, "{verified:#}");
        let open: Vec<_> = verified["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["verdict"] == "broken")
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert_eq!(open.contains(&"interfaces"), code == 1, "{verified:#}");
    }

    // Its service ended with its first life.
    world.apply();
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
