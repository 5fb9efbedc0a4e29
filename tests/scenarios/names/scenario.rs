//! Who depends on a sandbox reaches its declared ports by its name; nobody else does.

use crate::scenarios::world::World;

const ASK: &str =
    "python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())'";

#[test]
fn a_sandbox_is_reached_by_its_name() {
    let world = World::scenario("names");
    world.apply();
    // By the name alone, and by the proxy that programs inside are told of.
    let ask = |of: &str, url: &str| {
        let proxied = world.sh(of, &format!("{ASK} {url}"));
        let direct = world.sh(of, &format!("no_proxy='*' {ASK} {url}"));
        assert_eq!(proxied, direct);
        direct
    };
    let known = |of: &str| world.sh(of, "getent hosts db >/dev/null && echo known || echo unknown");
    assert_eq!(ask("api", "http://db:8000/"), "from db");
    assert_eq!(known("stranger"), "unknown");
    let address = world.sh("api", "getent hosts db | cut -d' ' -f1");
    assert!(address.starts_with("127."), "{address}");
    let refused = world.run(&[
        "exec",
        "stranger",
        "--",
        "sh",
        "-c",
        &format!("no_proxy='*' {ASK} http://{address}:8000/"),
    ]);
    assert!(refused.code != 0 && refused.stderr.contains("refused"), "{refused:?}");
    assert_eq!(ask("twin", "http://127.0.0.1:8000/"), "from twin");
    assert_eq!(ask("closed", "http://DB:8000/"), "from db", "no rule of egress is about it");
    assert_eq!(known("twin"), "unknown");

    // What else is in the file stays, through a restart too.
    world.sh("api", "echo 10.0.0.1 theirs >>/etc/hosts");
    world.run(&["restart", "api"]).ends(0);
    assert_eq!(ask("api", "http://db:8000/"), "from db");
    assert_eq!(world.sh("api", "getent hosts theirs | cut -d' ' -f1"), "10.0.0.1");

    // A new dependency changes what runs, and so does its end.
    let init = world.init("stranger");
    world.edit("pocketenv.yaml", "stranger: {}", "stranger: { depends_on: [db] }");
    world.apply();
    assert_eq!(ask("stranger", "http://db:8000/"), "from db");
    world.edit("pocketenv.yaml", "stranger: { depends_on: [db] }", "stranger: {}");
    world.apply();
    assert_eq!(known("stranger"), "unknown");
    assert!(init.lives());
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
