//! The program is replaced while sandboxes run: what the old one started goes on, and the new one does everything with it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;

use crate::scenarios::world::{World, eventually, program};

#[test]
fn upgrade() {
    let mut world = World::scenario("upgrade");
    let installed = world.project().join("../home/bin/pocketenv");
    fs::create_dir(installed.parent().unwrap()).unwrap();
    fs::copy(program(), &installed).unwrap();
    world.install(&installed);
    world.apply();
    let (api, short) = (world.init("api"), world.box_dir("short"));
    let page = |world: &World| {
        let mut stream = TcpStream::connect(world.endpoint("api", 8000)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(page(&world).ends_with("still here"));

    // as a package manager does it: another file under the same name, and the old one is gone
    let old = fs::metadata(&installed).unwrap().ino();
    fs::copy(program(), installed.with_extension("new")).unwrap();
    fs::rename(installed.with_extension("new"), &installed).unwrap();
    assert_ne!(fs::metadata(&installed).unwrap().ino(), old);
    let running = fs::read_link(format!("/proc/{}/exe", world.shim("api").pid)).unwrap();
    assert!(running.to_string_lossy().ends_with(" (deleted)"), "{running:?}");

    // nothing is to do, and everything can be done
    world.assert_converged();
    assert!(world.is_ready("sandbox/api/service/web"));
    assert_eq!(world.sh("api", "cat /srv/www/index.html"), "still here");
    assert!(page(&world).ends_with("still here"));
    world.run(&["logs", "api/web"]).ends(0);
    world.write("new.html", "brought");
    world.run(&["cp", "new.html", "api:/srv/www/new.html"]).ends(0);
    let snapshot = world.run(&["snapshot", "create", "api", "after"]);
    if snapshot.stderr.contains("nothing can be paused here") && !nix::unistd::geteuid().is_root() {
        assert_ne!(snapshot.code, 0, "{snapshot:?}");
    } else {
        snapshot.ends(0);
        world.run(&["snapshot", "rm", "after"]).ends(0);
    }
    assert!(api.lives(), "it was never restarted");

    // what is changed while it runs reaches the old processes, one of which deletes its sandbox with the program that is gone
    world.edit("pocketenv.yaml", "ttl: 8h", "ttl: 1s");
    world.run(&["apply", "--yes", "--target", "short"]);
    eventually("the old process ends its sandbox", || !short.exists());
    world.edit("pocketenv.yaml", "ttl: 1s", "ttl: 8h");

    // the next start is the new program's
    world.run(&["restart", "api"]).ends(0);
    eventually("it is served again", || world.is_ready("sandbox/api/service/web"));
    assert_eq!(world.sh("api", "cat /srv/www/new.html"), "brought");
    let running = fs::read_link(format!("/proc/{}/exe", world.shim("api").pid)).unwrap();
    assert_eq!(fs::canonicalize(running).unwrap(), fs::canonicalize(&installed).unwrap());
    world.destroy_and_see_nothing_left(&[]);
}
