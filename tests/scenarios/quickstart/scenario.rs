//! A new user applies the quickstart, uses it, changes it, breaks it, and gets rid of it.

use nix::sys::signal::Signal;

use crate::scenarios::world::{World, eventually, free_port, http_get};

const WEB: &str = "python3 -m http.server";

#[test]
fn quickstart() {
    let world = World::example("quickstart");
    // Others on this machine may have the port of the example.
    let port = free_port();
    world.edit("pocketenv.yaml", "host_port: 18080", &format!("host_port: {port}"));
    let address = ([127, 0, 0, 1], port).into();

    // applied: the page is served from the sandbox, on the port of the host
    world.apply();
    assert_eq!(
        http_get(address, "/").unwrap(),
        (200, include_str!("../../../examples/quickstart/index.html").to_owned())
    );
    assert_eq!(world.endpoint("hello", 8000), address);
    for resource in ["sandbox/hello", "sandbox/hello/service/web", "sandbox/hello/port/8000"] {
        assert!(world.is_ready(resource), "{}", world.status(resource));
    }
    // the walk of one field: from the file to the environment of the process
    let web = world.process("hello", WEB);
    assert!(web.environment().contains(&"PORT=8000".to_owned()));

    // applied again: nothing happens
    world.assert_converged();
    world.apply();
    assert_eq!(world.process("hello", WEB), web, "the service was left alone");
    let init = world.init("hello");

    // a file is changed: it is replaced, and nothing else happens
    world.write("index.html", "changed\n");
    world.assert_out_of_sync();
    world.apply();
    assert_eq!(http_get(address, "/").unwrap().1, "changed\n");
    assert_eq!(world.process("hello", WEB), web, "the service was left alone");
    world.assert_converged();

    // the environment of the service is changed: the service, and nothing else, restarts
    world.edit("pocketenv.yaml", "PORT: \"8000\"", "PORT: \"8001\"");
    world.edit("pocketenv.yaml", "tcp: 8000", "tcp: 8001");
    world.edit("pocketenv.yaml", "port: 8000,", "port: 8001,");
    world.apply();
    assert!(!web.lives());
    let web = world.process("hello", WEB);
    assert!(web.environment().contains(&"PORT=8001".to_owned()));
    assert_eq!(world.init("hello"), init, "the sandbox went on");
    assert_eq!(http_get(address, "/").unwrap().1, "changed\n");
    world.assert_converged();

    // the service is killed: its supervisor starts another, without us
    web.kill();
    eventually("the page is served again", || http_get(address, "/").is_ok_and(|(status, _)| status == 200));
    eventually("a plan is empty again", || world.run(&["plan", "--detailed-exitcode"]).code == 0);
    assert_eq!(world.init("hello"), init, "the sandbox went on");

    // the whole sandbox is killed: that is seen, and healed
    init.signal(Signal::SIGKILL);
    eventually("the sandbox is gone", || !init.lives());
    assert_ne!(world.status("sandbox/hello")["health"], "Healthy");
    world.assert_out_of_sync();
    world.apply();
    assert_eq!(http_get(address, "/").unwrap().1, "changed\n");
    world.assert_converged();

    world.destroy_and_see_nothing_left(&[address]);
    world.run(&["destroy", "--yes"]).ends(0);
}

#[test]
fn output_through_a_pipe_ends_with_the_program() {
    use std::io::Read as _;
    use std::process::Stdio;
    let world = World::example("quickstart");
    world.edit("pocketenv.yaml", "host_port: 18080", &format!("host_port: {}", free_port()));
    let mut child =
        world.command(&["apply", "--yes"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    // Whoever reads the pipe waits for its end: what stays behind in the sandbox must not hold it open.
    let reader = std::thread::spawn(move || {
        let (mut first, mut second) = (String::new(), String::new());
        out.read_to_string(&mut first).unwrap();
        err.read_to_string(&mut second).unwrap();
    });
    assert!(child.wait().unwrap().success());
    eventually("the pipes are closed", || reader.is_finished());
    world.destroy_and_see_nothing_left(&[]);
}
