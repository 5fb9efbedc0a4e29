//! What was declared is in place inside, commands run exactly as they are said, and files travel unchanged in every direction.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Stdio;

use crate::scenarios::world::World;

#[test]
fn inside() {
    let world = World::scenario("inside");
    world.apply();
    world.assert_converged();

    // environment: the file, over it the manifest, every byte of it
    assert_eq!(
        world.sh("box", "echo \"$FROM_FILE $COLOUR $WEIRD\"; pwd"),
        "yes green a'b\"c $HOME `x` \\ é\n/srv"
    );
    // files: modes, templates, directories with links and names of any language
    assert_eq!(
        world.sh("box", "cat plain templated site/übung.txt; stat -c %a plain site/sub/run.sh; readlink site/link; site/link"),
        "plain\ncolour green of inside\nü\n600\n755\nsub/run.sh\nran"
    );
    // presets: variables, conditions, an allowed failure
    assert_eq!(world.sh("box", "cat /root/hello"), "hello moon");
    // volumes: shared, and read-only where it says so
    world.sh("box", "echo shared > /shared/file");
    assert_eq!(
        world.sh("reader", "cat /shared/file; echo x 2>/dev/null > /shared/mine || echo refused"),
        "shared\nrefused"
    );

    // exec: arguments as they are, exit code, both streams, environment, directory, standard input, every byte
    let run = world.run(&["exec", "box", "--", "printf", "%s|", "a b", "", "$x", "*", "'"]).ends(0);
    assert_eq!(run.stdout, "a b||$x|*|'|");
    let run = world.run(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).ends(7);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\n", "err\n"));
    world.run(&["exec", "box", "--", "sh", "-c", "kill -KILL $$"]).ends(137);
    world.run(&["exec", "box", "--", "/does/not/exist"]).ends(127);
    let run = world
        .run(&["exec", "--env", "X=1", "--workdir", "/tmp", "box", "--", "sh", "-c", "echo $X; pwd"])
        .ends(0);
    assert_eq!(run.stdout, "1\n/tmp\n");
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(1 << 20).collect();
    let mut child = world
        .command(&["exec", "box", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == bytes);

    // cp: in, between, out; links, modes, empty directories, bytes
    let data = world.project().join("data");
    fs::create_dir_all(data.join("empty")).unwrap();
    fs::write(data.join("bytes"), &bytes).unwrap();
    fs::set_permissions(data.join("bytes"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("bytes", data.join("link")).unwrap();
    world.run(&["cp", "data", "box:/srv/copied"]).ends(0);
    world.run(&["cp", "box:/srv/copied", "reader:/root/again"]).ends(0);
    world.run(&["cp", "reader:/root/again", "back"]).ends(0);
    let back = world.project().join("back");
    assert!(fs::read(back.join("bytes")).unwrap() == bytes);
    assert_eq!(fs::metadata(back.join("bytes")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("bytes"));
    assert!(back.join("empty").is_dir());

    // logs, wait, restart, stop and start of one service
    assert_eq!(world.run(&["logs", "box/talker"]).ends(0).stdout, "line 1\nline 2\nline 3\n");
    assert_eq!(world.run(&["logs", "--tail", "1", "box/talker"]).ends(0).stdout, "line 3\n");
    world.run(&["wait", "box", "reader", "--timeout", "30s"]).ends(0);
    world.run(&["wait", "box", "--for", "deleted", "--timeout", "200ms"]).ends(5);
    let (init, talker) = (world.init("box"), world.process("box", "sleep 120001"));
    world.run(&["restart", "box/talker"]).ends(0);
    assert!(!talker.lives() && init.lives());
    world.process("box", "sleep 120001");
    world.run(&["stop", "box/talker"]).ends(0);
    assert!(!world.processes().iter().any(|process| process.command == "sleep 120001"));
    world.run(&["start", "box/talker"]).ends(0);
    world.process("box", "sleep 120001");
    world.assert_converged();

    // a typing mistake is answered with what was meant
    let unknown = world.run(&["exec", "bix", "--", "true"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("box"), "{unknown:?}");
    world.destroy_and_see_nothing_left(&[]);
}
