//! Sandboxes go out as images, and come back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use pocketenv::engine::BoxSpec;
use pocketenv::image::Reference;
use serde_json::json;

use super::images::{Entry, Form, Layout, archive, busybox, create, dir, file, layers, symlink, tool};
use super::support::{Fixture, is_root};
use crate::scenarios::world::have;

/// A sandbox goes out as an image, with all that its files are, and comes back; tools of the distribution read it on the way.
#[tokio::test]
async fn a_sandbox_is_exported_and_used_again() {
    let Some(mut base) = busybox() else { return };
    let more = ["chmod", "chown", "mkdir", "rm", "ln", "mkfifo", "find", "sort", "echo", "mv"];
    base.extend(more.map(|name| symlink(Box::leak(format!("bin/{name}").into_boxed_str()), "busybox")));
    base.extend([
        dir("old/"),
        file("old/gone", b"1"),
        file("old/kept", b"1"),
        dir("all/"),
        file("all/a", b"1"),
    ]);
    base.push(Entry { xattrs: &[("user.note", b"a\nb")], ..file("noted", b"n") });
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let config = json!({ "Env": ["KEPT=1"], "Cmd": ["run"], "User": "5", "Labels": { "a": "b" } });
    let reference = layout.image(&[(archive(&base), Form::Gzip)], config);
    create(&fixture, "a", &reference).await;
    let script = "cd /old; rm gone; rm -r /all; mkdir /all; echo 2 > /all/b; echo s > /old/one; ln one two; ln -s /old/one /link; \
        mkfifo /pipe; chown 7:8 one /all; chmod 4711 one; chmod 1777 /all; echo x > /etc/own";
    fixture.sh("a", script).await.ok();
    let look = "cat /old/two /all/b /etc/own; readlink /link; stat -c '%n %a %u:%g %h %F' /old/one /all /pipe /noted; \
        ls /old /all; echo $KEPT";
    let seen = fixture.sh("a", look).await.ok();
    let labels = BTreeMap::new();
    // Nothing can freeze what runs where control groups belong to another user.
    fixture.engine.stop("a", Duration::ZERO).await.unwrap();
    fixture.engine.create_snapshot("first", "a", &labels).await.unwrap();
    let spec = BoxSpec { snapshot: Some("first".to_owned()), ..BoxSpec::default() };
    fixture.create_with("on", spec).await;
    fixture.sh("on", "rm /old/kept; echo y > /above").await.ok();
    fixture.engine.stop("on", Duration::ZERO).await.unwrap();
    fixture.engine.create_snapshot("second", "on", &labels).await.unwrap();

    let target = |text: &str| text.replace('@', &fixture.dir.path().display().to_string());
    for (snapshot, text) in [("first", "oci:@/out:v2"), ("second", "oci-archive:@/out.tar:v3")] {
        let target: Reference = target(text).parse().unwrap();
        let digest = fixture.engine.export_snapshot(snapshot, &target).await.unwrap();
        let again = fixture.engine.export_snapshot(snapshot, &target).await.unwrap_err();
        assert!(again.to_string().contains("is there already"), "{again}");
        let image = create(&fixture, &format!("again-{snapshot}"), &target).await;
        assert_eq!(image.digest, digest.to_string());
        assert!(
            image
                .notes
                .iter()
                .any(|note| note.contains("its command is run by a service that has no `command`: run"))
        );
    }
    assert_eq!(fixture.sh("again-first", look).await.ok(), seen);
    let hosts = fixture.sh("again-first", "cat /etc/hostname").await.ok();
    assert_eq!(hosts, "again-first", "what the engine itself wrote is not in the image");
    let second = fixture.sh("again-second", "cat /above; ls /old").await.ok();
    assert_eq!(second, "y\none\ntwo");
    let noted = layers(&fixture).into_iter().filter(|layer| layer.join("noted").exists()).filter(|layer| {
        let mut value = [0; 8];
        rustix::fs::getxattr(layer.join("noted"), "user.note", &mut value[..])
            .is_ok_and(|len| &value[..len] == b"a\nb")
    });
    assert_eq!(noted.count(), 2, "once as it came, and once as it went out twice");

    let host = BoxSpec::default();
    fixture.create_with("host", host).await;
    fixture.engine.stop("host", Duration::ZERO).await.unwrap();
    fixture.engine.create_snapshot("host", "host", &labels).await.unwrap();
    let nowhere: Reference = target("oci:@/none").parse().unwrap();
    let refused = fixture.engine.export_snapshot("host", &nowhere).await.unwrap_err();
    assert!(refused.to_string().contains("programs of this machine"), "{refused}");

    if !is_root() || !have(&["skopeo", "umoci"]) {
        return;
    }
    let (oci, copied) = (target("oci:@/out:v2"), target("dir:@/copied"));
    tool("skopeo", &["--insecure-policy", "copy", &oci, &copied]);
    tool("skopeo", &["inspect", &target("oci-archive:@/out.tar:v3")]);
    let bundle = fixture.dir.path().join("bundle");
    tool("umoci", &["unpack", "--image", &oci[4..], &bundle.display().to_string()]);
    let root = bundle.join("rootfs");
    let one = fs::symlink_metadata(root.join("old/one")).unwrap();
    assert_eq!((one.mode() & 0o7777, one.uid(), one.gid(), one.nlink()), (0o4711, 7, 8, 2));
    assert!(
        !root.join("old/gone").exists() && !root.join("all/a").exists() && root.join("old/kept").exists()
    );
    assert!(fs::read_to_string(bundle.join("config.json")).unwrap().contains("KEPT=1"));
}
