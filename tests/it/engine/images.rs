//! Sandboxes from images: layouts made here by hand, entry by entry, and images made and served by the tools of the distribution.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pocketenv::engine::{BoxSpec, EngineError, Image, OciImage};
use pocketenv::image::{Digest, ImageError, Reference};
use serde_json::{Value as Json, json};

use super::support::{Fixture, eventually, is_root, request};
use crate::scenarios::world::have;

/// One entry of a layer.
pub(super) struct Entry {
    pub(super) path: &'static str,
    pub(super) kind: tar::EntryType,
    pub(super) content: Vec<u8>,
    pub(super) link: &'static str,
    pub(super) mode: u32,
    pub(super) owner: u64,
    pub(super) xattrs: &'static [(&'static str, &'static [u8])],
}

pub(super) fn entry(path: &'static str, kind: tar::EntryType) -> Entry {
    Entry { path, kind, content: Vec::new(), link: "", mode: 0o755, owner: 0, xattrs: &[] }
}

pub(super) fn dir(path: &'static str) -> Entry {
    entry(path, tar::EntryType::Directory)
}

pub(super) fn file(path: &'static str, content: &[u8]) -> Entry {
    Entry { content: content.to_vec(), mode: 0o644, ..entry(path, tar::EntryType::Regular) }
}

pub(super) fn symlink(path: &'static str, link: &'static str) -> Entry {
    Entry { link, ..entry(path, tar::EntryType::Symlink) }
}

fn hard_link(path: &'static str, link: &'static str) -> Entry {
    Entry { link, ..entry(path, tar::EntryType::Link) }
}

/// The archive, with names as they are: no library would write some of them.
pub(super) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        if !entry.xattrs.is_empty() {
            let named = entry.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value));
            let named: Vec<_> = named.collect();
            builder.append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), *value))).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner);
        header.set_gid(entry.owner);
        header.set_mtime(1_000_000_000);
        let ustar = header.as_ustar_mut().unwrap();
        ustar.name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        ustar.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        builder.append(&header, entry.content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[derive(Clone, Copy)]
pub(super) enum Form {
    Plain,
    Gzip,
    Zstd,
}

fn packed(plain: &[u8], form: Form) -> Vec<u8> {
    match form {
        Form::Plain => plain.to_vec(),
        Form::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        // Two frames and one that is skipped, as tools that find files in layers write them.
        Form::Zstd => {
            let frame = |part: &[u8]| {
                ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest)
            };
            let (first, second) = plain.split_at(plain.len() / 2);
            [frame(first), vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], frame(second)].concat()
        }
    }
}

/// An OCI image layout in a directory.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    pub(super) fn new(dir: &Path) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir: dir.to_owned() }
    }

    fn blob(&self, content: &[u8], media_type: &str) -> Json {
        let digest = Digest::of(content);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// An image of these plain archives; the reference of it.
    pub(super) fn image(&self, layers: &[(Vec<u8>, Form)], config: Json) -> Reference {
        let diff_ids: Vec<_> = layers.iter().map(|(plain, _)| Digest::of(plain)).collect();
        let blobs = layers
            .iter()
            .map(|(plain, form)| self.blob(&packed(plain, *form), "application/vnd.oci.image.layer.v1.tar"));
        self.image_of(blobs.collect(), &json!(diff_ids), config)
    }

    fn image_of(&self, layers: Vec<Json>, diff_ids: &Json, config: Json) -> Reference {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest =
            self.blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
        fs::write(
            self.dir.join("index.json"),
            json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string(),
        )
        .unwrap();
        format!("oci:{}:v1", self.dir.display()).parse().unwrap()
    }
}

/// A layer with a shell and its tools; `None`, after saying so, where there is no busybox that needs nothing else.
pub(super) fn busybox() -> Option<Vec<Entry>> {
    let Ok(program) = fs::read("/bin/busybox") else {
        eprintln!("SKIPPED: /bin/busybox is missing");
        return None;
    };
    let mut entries = vec![dir("bin/"), Entry { mode: 0o755, ..file("bin/busybox", &program) }];
    for name in ["sh", "cat", "ls", "id", "stat", "env", "pwd", "touch", "test", "readlink", "sleep"] {
        entries.push(symlink(Box::leak(format!("bin/{name}").into_boxed_str()), "busybox"));
    }
    Some(entries)
}

async fn image(fixture: &Fixture, reference: &Reference) -> Result<OciImage, EngineError> {
    fixture.engine.image(reference, false, &|_| ()).await.map(|(image, _hold)| image)
}

pub(super) async fn create(fixture: &Fixture, id: &str, reference: &Reference) -> OciImage {
    let image = image(fixture, reference).await.unwrap();
    fixture.create_with(id, BoxSpec { image: Image::Oci(image.clone()), ..BoxSpec::default() }).await;
    image
}

/// Directories of unpacked layers.
pub(super) fn layers(fixture: &Fixture) -> Vec<PathBuf> {
    let all = fixture.dir.path().join("data/engine/images/layers");
    let owners = fs::read_dir(all).into_iter().flatten().flatten();
    owners.flat_map(|owner| fs::read_dir(owner.path()).unwrap()).map(|layer| layer.unwrap().path()).collect()
}

#[tokio::test]
async fn layers_hide_replace_and_keep_what_is_below_them() {
    let Some(mut base) = busybox() else { return };
    base.extend([
        dir("etc/"),
        file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:0:0::/home/app:/bin/sh\n"),
        dir("data/"),
        file("data/gone", b"1"),
        file("data/kept", b"1"),
        file("data/changed", b"1"),
        dir("full/"),
        file("full/old", b"1"),
        dir("removed/"),
        file("removed/old", b"1"),
        dir("links/"),
        file("links/one", b"shared"),
        hard_link("links/two", "links/one"),
        symlink("links/absolute", "/data/kept"),
        Entry { mode: 0o4711, ..file("data/mode", b"") },
        Entry {
            xattrs: &[("user.note", b"a\nb"), ("user.overlay.opaque", b"y"), ("trusted.x", b"1")],
            ..file("data/noted", b"")
        },
    ]);
    let middle = [
        file("data/.wh.gone", b""),
        file("data/changed", b"2"),
        dir("full/"),
        file("full/.wh..wh..opq", b""),
        file("full/new", b"2"),
        file(".wh.removed", b""),
    ];
    let top = [dir("removed/"), file("removed/new", b"3")];
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let layers = [(archive(&base), Form::Gzip), (archive(&middle), Form::Zstd), (archive(&top), Form::Plain)];
    let reference = layout.image(
        &layers,
        json!({ "Env": ["GREETING=hello there", "PATH=/bin"], "WorkingDir": "/srv/app", "Cmd": ["serve"], "User": "app",
            "ExposedPorts": { "80/tcp": {} }, "Volumes": null }),
    );
    let made = create(&fixture, "a", &reference).await;
    let sh = async |script: &str| fixture.sh("a", script).await.ok();

    assert_eq!(sh("cd /data; echo *").await, "changed kept mode noted");
    assert_eq!(sh("cat /data/changed; echo /full/* /removed/*").await, "2/full/new /removed/new");
    assert_eq!(sh("stat -c %a:%Y /data/mode").await, "4711:1000000000");
    assert_eq!(sh("stat -c %h /links/one; cat /links/absolute").await, "2\n1");
    assert_eq!(sh("pwd; echo $GREETING; id -u").await, "/srv/app\nhello there\n0");
    assert!(made.notes.iter().any(|note| note.contains("serve")), "{:?}", made.notes);
    assert!(made.notes.iter().any(|note| note.contains("by its user, app,")), "{:?}", made.notes);
    assert!(made.notes.iter().any(|note| note.contains("80/tcp")), "{:?}", made.notes);
    assert!(made.notes.iter().any(|note| note.contains("2 extended attributes")), "{:?}", made.notes);

    // Nothing of this machine is in it, and all of it can be changed.
    assert_eq!(sh("ls -a /usr /opt 2>/dev/null; touch /bin/new /etc/new && echo changed").await, "changed");
    assert!(sh("cat /etc/hosts").await.contains("localhost"));

    fixture.engine.stop("a", std::time::Duration::from_secs(5)).await.unwrap();
    fixture.engine.start("a").await.unwrap();
    assert_eq!(sh("ls /bin/new /data/changed").await, "/bin/new\n/data/changed");
}

#[tokio::test]
async fn an_image_is_unpacked_once_and_goes_when_no_sandbox_needs_it() {
    let Some(base) = busybox() else { return };
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let (base, more) = (archive(&base), archive(&[file("more", b"1")]));
    let reference = layout.image(&[(base, Form::Gzip), (more, Form::Plain)], json!({}));
    let (first, second) = tokio::join!(create(&fixture, "a", &reference), create(&fixture, "b", &reference));
    assert_eq!(first.layers, second.layers);
    let there = layers(&fixture);
    assert_eq!(there.len(), 2, "{there:?}");
    let busybox = |layer: &Path| fs::symlink_metadata(layer.join("bin/busybox")).ok().map(|m| m.ino());
    let inode = there.iter().find_map(|layer| busybox(layer));

    fixture.sh("a", "touch /bin/only-a && rm -f /more").await.ok();
    assert_eq!(fixture.sh("b", "ls /more; ls /bin/only-a 2>/dev/null || true").await.ok(), "/more");
    let in_use = fixture.engine.remove_image(&reference).await.unwrap_err();
    assert!(matches!(in_use, EngineError::Image(ImageError::InUse { .. })), "{in_use}");
    assert_eq!(fixture.engine.collect_images().await.unwrap().layers, 0);

    fixture.engine.delete("a").await.unwrap();
    fixture.engine.collect_images().await.unwrap();
    assert_eq!(fixture.sh("b", "ls /more").await.ok(), "/more");
    assert_eq!(layers(&fixture).iter().find_map(|layer| busybox(layer)), inode);
    let listed = fixture.engine.list_images().await.unwrap();
    assert_eq!(listed.iter().map(|image| image.users.clone()).collect::<Vec<_>>(), [["b"]]);

    fixture.engine.delete("b").await.unwrap();
    // What was cut short by a crash.
    let half = there[0].with_file_name(format!(".new-{}", Digest::of(b"x").hex()));
    fs::create_dir(&half).unwrap();
    let removed = fixture.engine.collect_images().await.unwrap();
    assert_eq!((removed.images, removed.layers), (1, 3));
    assert_eq!(layers(&fixture), Vec::<PathBuf>::new());
    assert_eq!(fixture.engine.list_images().await.unwrap(), []);
}

#[tokio::test]
async fn a_snapshot_of_a_sandbox_from_an_image_lies_on_the_image() {
    let Some(mut base) = busybox() else { return };
    base.extend([dir("data/"), file("data/gone", b"1"), file("data/kept", b"1")]);
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let reference = layout.image(&[(archive(&base), Form::Gzip)], json!({}));
    create(&fixture, "a", &reference).await;
    fixture.sh("a", "/bin/busybox rm /data/gone; echo 2 > /data/new").await.ok();
    fixture.engine.stop("a", std::time::Duration::from_secs(5)).await.unwrap();
    fixture.engine.create_snapshot("s", "a", &BTreeMap::new()).await.unwrap();
    fixture.engine.delete("a").await.unwrap();

    fixture.engine.collect_images().await.unwrap();
    let in_use = fixture.engine.remove_image(&reference).await.unwrap_err().to_string();
    assert!(in_use.contains("snapshot s"), "{in_use}");
    fixture.create_with("b", BoxSpec { snapshot: Some("s".to_owned()), ..BoxSpec::default() }).await;
    assert_eq!(fixture.sh("b", "cd /data; echo *; cat new").await.ok(), "kept new\n2");

    fixture.engine.delete("b").await.unwrap();
    fixture.engine.delete_snapshot("s").await.unwrap();
    fixture.engine.collect_images().await.unwrap();
    assert_eq!(layers(&fixture), Vec::<PathBuf>::new());
}

/// What a hostile image tries, and what it is told.
#[tokio::test]
async fn hostile_layers_are_refused_and_reach_nothing() {
    let fixture = Fixture::new();
    // Names of an archive are short.
    let bait = tempfile::Builder::new().prefix("bait-").tempfile_in("/tmp").unwrap();
    let bait = bait.path();
    fs::write(bait, "untouched").unwrap();
    let up = "../../../../../../../../..";
    let out: &'static str = Box::leak(format!("{up}{}", bait.display()).into_boxed_str());
    let absolute: &'static str = Box::leak(bait.display().to_string().into_boxed_str());
    let device = Entry { ..entry("dev/mem", tar::EntryType::Char) };
    let cases: Vec<(&str, Vec<Entry>, &str)> = vec![
        ("a path with ..", vec![file("a/../../x", b"x")], "`..`"),
        ("a hard link out", vec![hard_link("x", out)], "`..`"),
        ("a hard link to an absolute path", vec![hard_link("x", absolute)], "hard link"),
        (
            "a hard link through a link",
            vec![symlink("up", "/"), hard_link("x", Box::leak(format!("up{absolute}").into_boxed_str()))],
            "hard link",
        ),
        ("a root that is a link", vec![symlink("./", "/")], "root"),
        ("an owner that no sandbox has", vec![Entry { owner: 200_000, ..file("x", b"") }], "owner"),
        ("a whiteout of nothing", vec![file(".wh.", b"")], "hides no name"),
        ("a whiteout of the parent", vec![file("a/.wh...", b"")], "hides no name"),
        ("a sparse file", vec![entry("x", tar::EntryType::GNUSparse)], "sparse"),
        ("a kind that nobody knows", vec![entry("x", tar::EntryType::new(b'Z'))], "unknown kind"),
        // These are made harmless.
        ("a file through a link", vec![symlink("out", up), file("out/x", b"x")], ""),
        ("a file over a link", vec![symlink("x", absolute), file("x", b"changed")], ""),
        ("a directory over a link", vec![symlink("x", "/tmp"), dir("x/"), file("x/inside", b"")], ""),
        ("an absolute path", vec![file("/etc/x", b"x")], ""),
        ("a device", vec![device], ""),
        ("a device like a whiteout", vec![Entry { ..entry("x", tar::EntryType::Char) }], ""),
    ];
    for (index, (what, entries, told)) in cases.iter().enumerate() {
        let layout = Layout::new(&fixture.dir.path().join(format!("layout-{index}")));
        let reference = layout.image(&[(archive(entries), Form::Plain)], json!({}));
        let result = image(&fixture, &reference).await;
        // With a single id nobody has another owner.
        let taken = told.is_empty() || (*told == "owner" && result.is_ok() && !is_root());
        match result {
            Ok(_) if taken => {}
            Err(EngineError::Image(ImageError::Unusable { why, .. })) if !taken && why.contains(told) => {}
            other => panic!("{what}: {other:?}, expected {told:?}"),
        }
        assert_eq!(fs::read_to_string(bait).unwrap(), "untouched", "{what}");
        for name in ["/x", "/tmp/inside", "/etc/x"] {
            assert!(!Path::new(name).exists(), "{what}: {name} came into being on this machine");
        }
    }
    let devices = layers(&fixture).into_iter().filter(|layer| layer.join("dev/mem").exists());
    assert_eq!(devices.count(), 0);
    assert!(
        layers(&fixture).iter().all(|layer| !layer
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(".new-"))
    );
}

#[tokio::test]
async fn damaged_and_oversized_layers_are_refused() {
    let fixture = Fixture::new();
    let plain = archive(&[file("x", &[7; 5000])]);
    let tried = async |name: &str, blob: &[u8], said_size: usize, said_digest: Digest, diff_id: Digest| {
        let layout = Layout::new(&fixture.dir.path().join(name));
        let mut layer = layout.blob(blob, "application/vnd.oci.image.layer.v1.tar");
        let real = Digest::of(blob);
        fs::rename(
            layout.dir.join("blobs/sha256").join(real.hex()),
            layout.dir.join("blobs/sha256").join(said_digest.hex()),
        )
        .unwrap();
        layer["digest"] = json!(said_digest);
        layer["size"] = json!(said_size);
        let reference = layout.image_of(vec![layer], &json!([diff_id]), json!({}));
        match image(&fixture, &reference).await {
            Err(EngineError::Image(ImageError::Unusable { why, .. })) => why,
            other => panic!("{name}: {other:?}"),
        }
    };
    let of = Digest::of;
    let why = tried("other-digest", &plain, plain.len(), of(b"other"), of(&plain)).await;
    assert!(why.contains("its digest is"), "{why}");
    let why = tried("other-diff-id", &plain, plain.len(), of(&plain), of(b"other")).await;
    assert!(why.contains("its digest is"), "{why}");
    let why = tried("other-size", &plain, plain.len() + 1, of(&plain), of(&plain)).await;
    assert!(why.contains("bytes"), "{why}");
    let cut = &plain[..2000];
    let why = tried("cut", cut, cut.len(), of(cut), of(cut)).await;
    assert!(why.contains("entry `x`"), "{why}");
    let gzip = packed(&plain, Form::Gzip);
    let cut = &gzip[..gzip.len() - 10];
    tried("cut-gzip", cut, cut.len(), of(cut), of(&plain)).await;

    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb.write_all(&plain).unwrap();
    for _ in 0..300 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let why = tried("bomb", &bomb, bomb.len(), of(&bomb), of(b"unknown")).await;
    assert!(why.contains("bomb"), "{why}");

    let mut long = tar::Header::new_ustar();
    long.set_entry_type(tar::EntryType::XHeader);
    long.set_size(2 << 20);
    long.set_cksum();
    let long = [long.as_bytes().as_slice(), &vec![b'x'; 2 << 20]].concat();
    let why = tried("long-header", &long, long.len(), of(&long), of(&long)).await;
    assert!(why.contains("longer than"), "{why}");
    assert_eq!(layers(&fixture), Vec::<PathBuf>::new());
}

/// Who is root inside cannot make the engine write somewhere else when the sandbox starts again.
#[tokio::test]
async fn a_link_in_place_of_etc_is_not_followed_at_the_next_start() {
    let Some(base) = busybox() else { return };
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let reference = layout.image(&[(archive(&base), Form::Plain)], json!({}));
    create(&fixture, "a", &reference).await;
    let victim = fixture.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("hosts"), "mine").unwrap();
    let script = format!("/bin/busybox rm -rf /etc && /bin/busybox ln -s {} /etc", victim.display());
    fixture.sh("a", &script).await.ok();
    fixture.engine.stop("a", std::time::Duration::from_secs(5)).await.unwrap();
    let spec = fixture.engine.get("a").await.unwrap().unwrap().spec;
    fixture.engine.reconfigure("a", &BoxSpec { hostname: Some("other".to_owned()), ..spec }).await.unwrap();
    fixture.engine.start("a").await.unwrap();
    assert_eq!(fs::read_to_string(victim.join("hosts")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    assert_eq!(fixture.sh("a", "readlink /etc").await.ok(), victim.display().to_string());
}

#[tokio::test]
async fn an_image_for_another_machine_or_of_another_name_is_told_apart() {
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let reference = layout.image(&[(archive(&[file("x", b"1")]), Form::Plain)], json!({}));
    let other: Reference = reference.to_string().replace(":v1", ":v2").parse().unwrap();
    let error = image(&fixture, &other).await.unwrap_err().to_string();
    assert!(error.contains("v2") && error.contains("v1"), "{error}");
    let nowhere: Reference = "oci:/nowhere".parse().unwrap();
    assert!(matches!(image(&fixture, &nowhere).await, Err(EngineError::Image(ImageError::NotFound(..)))));

    let index: Json = serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
    let platform = |architecture: &str| {
        let mut manifest = index["manifests"][0].clone();
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest.as_object_mut().unwrap().remove("annotations");
        manifest
    };
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let many = |platforms: &[&str]| {
        let index = json!({ "schemaVersion": 2, "manifests": platforms.iter().map(|name| platform(name)).collect::<Vec<_>>() });
        let mut top = layout.blob(index.to_string().as_bytes(), "application/vnd.oci.image.index.v1+json");
        top["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
        fs::write(layout.dir.join("index.json"), json!({ "manifests": [top] }).to_string()).unwrap();
    };
    many(&["s390x", here]);
    image(&fixture, &reference).await.unwrap();
    many(&["s390x", "riscv64"]);
    let error = image(&fixture, &reference).await.unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains(here), "{error}");
}

pub(super) fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An image made by umoci, of a layer with a shell and one that changes it.
pub(super) fn made_by_umoci(dir: &Path) -> Option<PathBuf> {
    if !is_root() {
        eprintln!("SKIPPED: umoci without root writes other owners");
        return None;
    }
    if !have(&["umoci", "skopeo"]) {
        return None;
    }
    let entries = busybox()?;
    let (layout, files) = (dir.join("umoci"), dir.join("files"));
    fs::create_dir_all(&files).unwrap();
    tar::Archive::new(archive(&entries).as_slice()).unpack(&files).unwrap();
    fs::write(files.join("version"), "1\n").unwrap();
    let image = format!("{}:v1", layout.display());
    tool("umoci", &["init", "--layout", &layout.display().to_string()]);
    tool("umoci", &["new", "--image", &image]);
    tool("umoci", &["insert", "--image", &image, &files.display().to_string(), "/"]);
    fs::write(files.join("version"), "2\n").unwrap();
    tool("umoci", &["insert", "--image", &image, &files.join("version").display().to_string(), "/version"]);
    tool("umoci", &["insert", "--image", &image, "--whiteout", "/bin/sleep"]);
    tool("umoci", &["config", "--image", &image, "--config.env", "MADE_BY=umoci"]);
    Some(layout)
}

const SEEN: &str = "cat /version; echo $MADE_BY; ls /bin/sleep 2>/dev/null || echo gone";

#[tokio::test]
async fn images_of_the_distributions_tools_in_all_their_forms() {
    let fixture = Fixture::new();
    let Some(layout) = made_by_umoci(fixture.dir.path()) else { return };
    let source = format!("oci:{}:v1", layout.display());
    let path = |name: &str| fixture.dir.path().join(name).display().to_string();
    let (oci, docker) = (path("oci.tar"), path("docker.tar"));
    tool("skopeo", &["--insecure-policy", "copy", &source, &format!("oci-archive:{oci}:v1")]);
    tool(
        "skopeo",
        &["--insecure-policy", "copy", &source, &format!("docker-archive:{docker}:test/image:v1")],
    );
    let references = [
        source,
        format!("oci-archive:{oci}:v1"),
        format!("docker-archive:{docker}:v1"),
        format!("docker-archive:{docker}"),
    ];
    for (index, reference) in references.iter().enumerate() {
        let id = format!("box-{index}");
        create(&fixture, &id, &reference.parse().unwrap()).await;
        assert_eq!(fixture.sh(&id, SEEN).await.ok(), "2\numoci\ngone", "{reference}");
    }
    assert_eq!(layers(&fixture).len(), 3, "the forms of one image share its layers");
}

/// A registry of the distribution on a port of the loopback; it ends with this.
pub(super) struct Registry {
    child: Child,
    pub(super) host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) async fn registry(dir: &Path) -> Option<Registry> {
    if !have(&["docker-registry", "setpriv"]) {
        return None;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {host} }}\n",
        dir.join("registry").display()
    );
    fs::write(&config, text).unwrap();
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "docker-registry", "serve"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let registry = Registry { child, host: host.clone() };
    eventually("the registry answers", async || std::net::TcpStream::connect(&host).is_ok()).await;
    Some(registry)
}

/// An image of umoci's, and a registry that has it: where it lies, the registry, and its name without the registry's.
pub(super) async fn served(dir: &Path) -> Option<(String, Registry, String)> {
    let source = format!("oci:{}:v1", made_by_umoci(dir)?.display());
    let registry = registry(dir).await?;
    let name = format!("{}/test/image:v1", registry.host);
    push(&source, &name);
    Some((source, registry, name))
}

pub(super) fn push(source: &str, name: &str) {
    let target = format!("docker://{name}");
    tool("skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", source, &target]);
}

#[tokio::test]
async fn an_image_is_pulled_from_a_registry_and_kept_until_it_is_pulled_again() {
    let fixture = Fixture::new();
    let Some((source, registry, name)) = served(fixture.dir.path()).await else { return };
    let push = || push(&source, &name);
    let reference: Reference = name.parse().unwrap();
    let first = create(&fixture, "a", &reference).await;
    assert_eq!(fixture.sh("a", SEEN).await.ok(), "2\numoci\ngone");

    // The tag moves on; the name stands for what was pulled until somebody pulls again.
    tool("umoci", &["config", "--image", &source[4..], "--config.env", "MADE_BY=somebody else"]);
    push();
    assert_eq!(image(&fixture, &reference).await.unwrap().digest, first.digest);
    let (again, hold) = fixture.engine.image(&reference, true, &|_| ()).await.unwrap();
    drop(hold);
    assert_ne!(again.digest, first.digest);

    // By its digest the first one is still there, though the tag has gone.
    let old: Reference = format!("{}/test/image@{}", registry.host, first.digest).parse().unwrap();
    assert_eq!(image(&fixture, &old).await.unwrap().digest, first.digest);

    let missing: Reference = format!("{}/test/image:v9", registry.host).parse().unwrap();
    assert!(matches!(image(&fixture, &missing).await, Err(EngineError::Image(ImageError::NotFound(..)))));
    let host = registry.host.clone();
    drop(registry);
    assert_eq!(
        image(&fixture, &reference).await.unwrap().digest,
        again.digest,
        "what is here needs no registry"
    );
    let unknown: Reference = format!("{host}/test/other:v1").parse().unwrap();
    assert!(matches!(image(&fixture, &unknown).await, Err(EngineError::Image(ImageError::Registry { .. }))));
}

/// Whoever applies the same manifest and lock gets the same image, wherever the tag has gone since.
#[tokio::test]
async fn a_lock_keeps_the_digest_of_a_tag() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let Some((source, _registry, name)) = served(fixture.dir.path()).await else { return };
    let push = || push(&source, &name);
    let manifest = format!("version: 1\nname: locked\nsandboxes: {{ box: {{ image: '{name}' }} }}\n");
    for fixture in [&fixture, &other] {
        fs::write(fixture.dir.path().join("pocketenv.yaml"), &manifest).unwrap();
    }
    let made_by = |fixture: &Fixture| pocketenv(fixture, &["exec", "box", "--", "sh", "-c", "echo $MADE_BY"]);
    let (code, text) = pocketenv(&fixture, &["apply", "--yes"]);
    assert!(code == 0 && text.contains("pocketenv.lock"), "{text}");
    let lock = fs::read_to_string(fixture.dir.path().join("pocketenv.lock")).unwrap();
    assert!(lock.contains(&name) && lock.contains("sha256:"), "{lock}");

    tool("umoci", &["config", "--image", &source[4..], "--config.env", "MADE_BY=somebody else"]);
    push();
    fs::write(other.dir.path().join("pocketenv.lock"), &lock).unwrap();
    let (code, text) = pocketenv(&other, &["apply", "--yes"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(made_by(&other), (0, "umoci\n".to_owned()));
    assert_eq!(fs::read_to_string(other.dir.path().join("pocketenv.lock")).unwrap(), lock);
    // The lock is no part of what a sandbox is.
    assert_eq!(pocketenv(&other, &["plan", "--detailed-exitcode"]).0, 0);

    fs::remove_file(other.dir.path().join("pocketenv.lock")).unwrap();
    assert_eq!(pocketenv(&other, &["destroy", "--yes"]).0, 0);
    let (code, text) = pocketenv(&other, &["apply", "--yes"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(made_by(&other), (0, "somebody else\n".to_owned()));

    fs::write(other.dir.path().join("pocketenv.lock"), "version: 7\nimages: {}\n").unwrap();
    let (code, text) = pocketenv(&other, &["plan"]);
    assert!(code != 0 && text.contains("pocketenv.lock") && text.contains("version"), "{code}: {text}");
}

/// A registry that wants a token for credentials, serves one layer in two halves and cuts the first one off.
#[tokio::test]
async fn a_pull_with_credentials_goes_on_where_it_was_cut_off() {
    use axum::extract::{Path as UrlPath, Query};
    use axum::http::{HeaderMap, StatusCode, header};
    use axum::response::{IntoResponse, Response};
    use std::sync::{Arc, Mutex};

    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let noise: Vec<u8> = (0..1_500_000u64).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    layout.image(&[(archive(&[file("noise", &noise)]), Form::Plain)], json!({}));
    let index: Json = serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let blobs = layout.dir.join("blobs/sha256");
    let ranges: Arc<Mutex<Vec<String>>> = Arc::default();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let realm = host.clone();
    let token = async move |headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>| -> Response {
        let basic = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        // ann:secret
        let known = basic.as_deref() == Some("Basic YW5uOnNlY3JldA==")
            && query.get("scope").is_some_and(|scope| scope == "repository:private/image:pull")
            && query.get("service").is_some_and(|service| service == "here");
        match known {
            true => json!({ "token": "t0ken", "access_token": "t0ken" }).to_string().into_response(),
            false => StatusCode::UNAUTHORIZED.into_response(),
        }
    };
    let seen = ranges.clone();
    let serve = async move |UrlPath((kind, version)): UrlPath<(String, String)>,
                            headers: HeaderMap|
                -> Response {
        if headers.get(header::AUTHORIZATION).is_none_or(|value| value != "Bearer t0ken") {
            let challenge = format!(
                "Bearer realm=\"http://{realm}/token\",service=\"here\",scope=\"repository:private/image:pull\""
            );
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
        }
        let digest = if kind == "manifests" && version == "v1" { manifest.clone() } else { version };
        let content = fs::read(blobs.join(digest.trim_start_matches("sha256:"))).unwrap();
        if kind == "manifests" {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            return ([(header::CONTENT_TYPE, kind)], content).into_response();
        }
        let range = headers.get(header::RANGE).map(|value| value.to_str().unwrap().to_owned());
        if content.len() < 1_000_000 {
            return content.into_response();
        }
        seen.lock().unwrap().push(range.clone().unwrap_or_default());
        match range {
            None => {
                let halves: [Result<Vec<u8>, std::io::Error>; 2] =
                    [Ok(content[..700_000].to_vec()), Err(std::io::ErrorKind::ConnectionReset.into())];
                axum::body::Body::from_stream(futures::stream::iter(halves)).into_response()
            }
            Some(range) => {
                let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                (StatusCode::PARTIAL_CONTENT, content[from..].to_vec()).into_response()
            }
        }
    };
    let app = axum::Router::new()
        .route("/token", axum::routing::get(token))
        .route("/v2/private/image/{kind}/{version}", axum::routing::get(serve));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let docker = fixture.dir.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let pull = async || {
        let exe =
            std::env::var_os("POCKETENV_TEST_EXE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into());
        let mut command = tokio::process::Command::new(exe);
        command.args(["image", "pull", "-o", "json", &format!("{host}/private/image:v1")]);
        command.env("DOCKER_CONFIG", &docker).env("POCKETENV_HOME", fixture.dir.path());
        command.output().await.unwrap()
    };
    let denied = pull().await;
    assert_eq!(denied.status.code(), Some(7), "{}", String::from_utf8_lossy(&denied.stderr));

    let auths = json!({ "auths": { host.as_str(): { "auth": "YW5uOnNlY3JldA==" } } });
    fs::write(docker.join("config.json"), auths.to_string()).unwrap();
    let pulled = pull().await;
    let told = String::from_utf8_lossy(&pulled.stderr).into_owned();
    assert!(pulled.status.success(), "{told}");
    assert!(!told.contains("secret") && !told.contains("t0ken"), "{told}");
    let ranges = ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges[0].is_empty() && ranges[1].starts_with("bytes="), "{ranges:?}");
    let mut found = Vec::new();
    let layer = layers(&fixture).into_iter().next().unwrap();
    fs::File::open(layer.join("noise")).unwrap().read_to_end(&mut found).unwrap();
    assert!(found == noise);
    let partial = fixture.dir.path().join("data/engine/images/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0, "the archive of a layer is not kept");
    server.abort();
}

pub(super) fn pocketenv(fixture: &Fixture, args: &[&str]) -> (i32, String) {
    let exe =
        std::env::var_os("POCKETENV_TEST_EXE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into());
    let mut command = Command::new(exe);
    command.args(args).current_dir(fixture.dir.path()).env("POCKETENV_HOME", fixture.dir.path());
    let output = command.output().unwrap();
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn a_manifest_is_applied_with_an_image_and_nothing_is_left_to_do() {
    let Some(mut base) = busybox() else { return };
    base.extend(
        [
            "mkdir", "mv", "rm", "chmod", "head", "tail", "sed", "awk", "tr", "kill", "date", "ps", "wc",
            "od", "cut", "sort", "find",
        ]
        .map(|name| symlink(Box::leak(format!("bin/{name}").into_boxed_str()), "busybox")),
    );
    base.extend(
        [
            "mkfifo",
            "mktemp",
            "cp",
            "ln",
            "tar",
            "grep",
            "setsid",
            "sha256sum",
            "true",
            "printf",
            "uname",
            "chown",
            "rmdir",
            "cmp",
        ]
        .map(|name| symlink(Box::leak(format!("bin/{name}").into_boxed_str()), "busybox")),
    );
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    layout
        .image(&[(archive(&base), Form::Gzip)], json!({ "Env": ["FROM_IMAGE=1"], "WorkingDir": "/srv/app" }));
    let manifest = r#"
version: 1
name: imaged
sandboxes:
  box:
    image: oci:./layout:v1
    env: { FROM_MANIFEST: "2" }
    files: [{ path: /etc/app.conf, content: "x = 1\n" }]
    services:
      web: { command: [sh, -c, "echo $FROM_IMAGE$FROM_MANIFEST > /srv/app/seen; exec sleep 1000"] }
"#;
    fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
    let (code, text) = pocketenv(&fixture, &["apply", "--yes"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = pocketenv(&fixture, &["exec", "box", "--", "sh", "-c", "pwd; cat /etc/app.conf seen"]);
    assert_eq!(
        (code, text.as_str()),
        (
            0,
            "/srv/app
x = 1
12
"
        )
    );
    let (code, text) = pocketenv(&fixture, &["plan", "--detailed-exitcode"]);
    assert_eq!(code, 0, "{text}");

    let id = fixture.engine.list().await.unwrap()[0].id.clone();
    let (code, text) = pocketenv(&fixture, &["image", "list", "-o", "json"]);
    assert_eq!(code, 0, "{text}");
    let listed: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(listed["images"][0]["users"], json!([id]));
    let (code, text) = pocketenv(&fixture, &["image", "rm", "oci:./layout:v1"]);
    assert!(code == 8 && text.contains(&id), "{code}: {text}");

    // Another image is another sandbox, and needs consent.
    fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest.replace(":v1", "")).unwrap();
    let (code, text) = pocketenv(&fixture, &["plan", "--detailed-exitcode"]);
    assert!(code == 2 && text.contains("image"), "{code}: {text}");

    let (code, text) = pocketenv(&fixture, &["destroy", "--yes"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = pocketenv(&fixture, &["image", "rm", "oci:./layout:v1"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(layers(&fixture), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_command_without_a_shell_in_its_image_says_so() {
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    let reference = layout.image(&[], json!({}));
    create(&fixture, "a", &reference).await;
    let error = fixture.run("a", request(["sh", "-c", "true"])).await.unwrap_err();
    assert!(matches!(error, EngineError::Exec { .. }), "{error}");
}
