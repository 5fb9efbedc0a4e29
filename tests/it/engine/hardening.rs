use pocketenv::engine::{BoxSpec, Exit, Network};

use super::support::{Fixture, is_root, request};

#[tokio::test]
async fn nothing_to_gain_inside() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let status = fixture.sh("one", "cat /proc/self/status").await.ok();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let bounding = u64::from_str_radix(&field("CapBnd:"), 16).unwrap();
    assert_eq!(bounding, 0x8004_05fb, "{bounding:x}");
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap() & !bounding, 0);
    for forbidden in [
        "mount -t tmpfs none /mnt",
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "umount /proc",
        "cat /proc/kcore",
        "echo 1 > /proc/sys/kernel/hostname",
        "echo x > /proc/sysrq-trigger",
        "mount --bind /root /mnt",
        "hostname other",
        "cat /proc/1/environ",
        "ls /proc/1/fd/",
        "ls /proc/1/root/",
        "head -c1 /proc/1/mem",
        "mknod /root/sda b 8 0 && cat /root/sda",
        "nsenter -t 1 -m true",
        "chroot /proc/1/root true",
        "setarch --addr-no-randomize true",
    ] {
        let output = fixture.sh("one", forbidden).await;
        let empty = output.stdout.is_empty();
        assert!(
            output.exit != Exit::Code(0) || empty && forbidden.starts_with("cat /proc/kcore"),
            "`{forbidden}` succeeded: {output:?}"
        );
    }
    // Calls that no command makes, by their numbers: denied, and not merely missing or misused.
    for (name, call) in [
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("kexec_load", libc::SYS_kexec_load),
        ("keyctl", libc::SYS_keyctl),
        ("migrate_pages", libc::SYS_migrate_pages),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("quotactl", libc::SYS_quotactl),
        ("request_key", libc::SYS_request_key),
        ("set_mempolicy", libc::SYS_set_mempolicy),
        ("setns", libc::SYS_setns),
        ("swapon", libc::SYS_swapon),
        ("userfaultfd", libc::SYS_userfaultfd),
    ] {
        let script = format!("my $r = syscall({call}, 0, 0, 0, 0, 0); print $r == -1 ? $! + 0 : 'done'");
        let answer = fixture.run("one", request(["perl", "-e", &script])).await.unwrap();
        assert_eq!(answer.ok(), libc::EPERM.to_string(), "{name}");
    }
    let processes = fixture.sh("one", "ls /proc | grep -c '^[0-9]'").await.ok();
    assert!(processes.parse::<u32>().unwrap() < 10, "only own processes: {processes}");
    assert_eq!(fixture.sh("one", "kill -9 1; kill -TERM 1; sleep 0.05; echo alive").await.ok(), "alive");
}

#[tokio::test]
async fn nothing_private_of_the_host_is_visible() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    for path in ["/home", "/mnt", "/media", "/boot", "/srv", "/sys", "/tmp", "/workspace"] {
        assert_eq!(fixture.sh("one", &format!("ls -A {path}")).await.ok(), "", "{path}");
    }
    let dir = fixture.dir.path().display().to_string();
    for path in
        [dir.as_str(), "/var/lib/docker", "/var/backups", "/etc/sudoers.d/README", "/work", "/old_root"]
    {
        assert_ne!(fixture.sh("one", &format!("test -e {path}")).await.exit, Exit::Code(0), "{path}");
    }
    for path in ["/etc/shadow", "/etc/gshadow", "/etc/sudoers"] {
        assert_eq!(fixture.sh("one", &format!("cat {path} 2>/dev/null; true")).await.ok(), "", "{path}");
    }
    let mounts = fixture.sh("one", "cat /proc/self/mountinfo").await.ok();
    let weak: Vec<&str> = mounts
        .lines()
        .filter(|line| !line.contains("nosuid"))
        .filter(|line| !line.contains(" /dev/"))
        .filter(|line| !line.contains("/null /proc/"))
        .collect();
    assert!(weak.is_empty(), "{weak:?}");
    let modes = fixture.sh("one", "stat -c '%a %U' /tmp /root /dev/shm").await.ok();
    assert_eq!(modes, "1777 root\n700 root\n1777 root");
    if is_root() {
        // a file of the host's root that only it may read, in a place that is shown
        let secret = "/etc/pocketenv-test-secret";
        std::fs::write(secret, "secret").unwrap();
        std::fs::set_permissions(secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let read = fixture.sh("one", &format!("cat {secret}")).await;
        std::fs::remove_file(secret).unwrap();
        assert_ne!(read.exit, Exit::Code(0));
        assert!(read.stdout.is_empty());
    }
}

/// The second fence: whoever starts a command may hand it a directory of the machine by mistake.
#[tokio::test]
async fn a_descriptor_of_another_place_leads_nowhere() {
    let fixture = Fixture::new();
    let info = fixture.create("one").await;
    assert!(!info.choices.iter().any(|choice| choice.starts_with("no second fence")), "{:?}", info.choices);
    let outside = fixture.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "of the machine").unwrap();
    std::fs::set_permissions(&outside, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for script in [
        "cat /proc/self/fd/0/file",
        "ls /proc/self/fd/0/",
        "ls /proc/self/fd/0/..",
        "cd /proc/self/fd/0 && cat file",
        "echo changed > /proc/self/fd/0/file",
        "echo new > /proc/self/fd/0/new",
        "mkdir /proc/self/fd/0/new",
        "ln -s x /proc/self/fd/0/new",
        "rm /proc/self/fd/0/file",
        "mv /proc/self/fd/0/file /proc/self/fd/0/new",
    ] {
        let directory = std::fs::File::open(&outside).unwrap().into();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let command = request(["sh", "-c", script]);
        let mut handle = fixture
            .start("one", command, directory, writer.try_clone().unwrap().into(), writer.into())
            .await
            .unwrap();
        assert_ne!(handle.wait().await.unwrap(), Exit::Code(0), "{script}");
        let mut said = String::new();
        std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert!(said.contains("denied"), "{script}: {said}");
    }
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "of the machine");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

/// In the machine's own network, abstract sockets are in sight.
#[tokio::test]
async fn abstract_sockets_of_the_machine_are_closed() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    let fixture = Fixture::new();
    fixture.create_with("one", BoxSpec { network: Network::Host, ..BoxSpec::default() }).await;
    let name = format!("pocketenv-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let connect = |listens: &str| {
        format!(
            "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; {listens}
             print connect($s, pack_sockaddr_un(qq(\\0{name}))) ? 'connected' : $!"
        )
    };
    let answer = fixture.run("one", request(["perl", "-e", &connect("")])).await.unwrap();
    assert_eq!(answer.ok(), "Operation not permitted");
    // One of its own is open to it.
    let own = "socket(my $l, AF_UNIX, SOCK_STREAM, 0) or die; bind($l, pack_sockaddr_un(qq(\\0own))) or die $!; listen($l, 1) or die;";
    let script = connect(own).replace(&format!("qq(\\0{name})"), "qq(\\0own)");
    assert_eq!(fixture.run("one", request(["perl", "-e", &script])).await.unwrap().ok(), "connected");
}

#[tokio::test]
async fn programs_of_the_host_work_and_new_files_can_be_made() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let script = "set -e; echo '#!/bin/sh' > /usr/local/bin/mine; echo 'echo mine' >> /usr/local/bin/mine; chmod +x /usr/local/bin/mine; mine
        mkdir -p /opt/new 2>/dev/null || true; echo a > /etc/own.conf; mv /etc/own.conf /etc/own2.conf; cat /etc/own2.conf
        grep -c root /etc/passwd >/dev/null; echo 127.0.0.9 x >> /etc/hosts; ls /var/lib /run /dev/pts >/dev/null; test -c /dev/null; echo done";
    assert_eq!(fixture.sh("one", script).await.ok(), "mine\na\ndone");
    assert!(!std::path::Path::new("/usr/local/bin/mine").exists());
    assert!(!std::path::Path::new("/etc/own2.conf").exists());
}
