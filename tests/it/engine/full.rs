//! A machine whose own disk is full: every command says so, nothing is lost, and all goes on when there is room again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pocketenv::engine::{BoxSpec, BoxState, EngineError, Limits, MIN_DISK};

use super::support::{Fixture, is_root, processes_in};

/// A small file system over the data directory of a fixture. It goes after the fixture has deleted what is on it.
struct Small {
    mounted: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl Small {
    /// The fixture, as the later of the two, is dropped first.
    fn under_a_fixture() -> (Small, Fixture) {
        let fixture = Fixture::new();
        (Small::over(&fixture.dir.path().join("data")), fixture)
    }

    fn over(dir: &Path) -> Small {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(64 << 20).unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
        };
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), "-m".as_ref(), "0".as_ref(), image.path()]);
        fs::create_dir_all(dir).unwrap();
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.path(), dir]);
        Small { mounted: dir.to_owned(), _image: image }
    }

    /// Writes until nothing more fits; the file is the room.
    fn fill(&self) -> PathBuf {
        let path = self.mounted.join("ballast");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        let _ = file.sync_all();
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).status();
        let _ = fs::remove_dir_all(self.mounted.parent().unwrap());
    }
}

/// The error and its causes.
fn causes(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn a_full_machine_is_told_and_loses_nothing() {
    if !is_root() {
        return; // only root mounts the small file system
    }
    let (small, fixture) = Small::under_a_fixture();
    fixture.create("one").await;
    fixture.sh("one", "echo kept > /root/file").await.ok();
    let ballast = small.fill();

    // Nothing new: it is said why, and nothing is left of it.
    let limited =
        BoxSpec { limits: Limits { disk: Some(MIN_DISK), ..Limits::default() }, ..BoxSpec::default() };
    for spec in [BoxSpec::default(), limited.clone()] {
        let error = fixture.engine.create("two", &spec, &BTreeMap::new()).await.unwrap_err();
        let text = causes(&error);
        assert!(text.contains("No space left"), "{text}");
        assert!(fixture.engine.get("two").await.unwrap().is_none());
    }
    let error = fixture.engine.create_snapshot("s", "one", &BTreeMap::new()).await.unwrap_err();
    assert!(causes(&error).contains("No space left"), "{}", causes(&error));
    assert!(fixture.engine.list_snapshots().await.unwrap().is_empty());

    // What runs goes on, and sees what any program sees.
    assert_eq!(fixture.sh("one", "cat /root/file").await.ok(), "kept");
    let inside = fixture.sh("one", "head -c 1M /dev/zero > /root/big").await;
    let said = String::from_utf8_lossy(&inside.stderr);
    assert!(said.contains("No space left"), "{inside:?}");
    let labels = BTreeMap::from([("a".to_owned(), "b".repeat(8192))]);
    let error = fixture.engine.set_labels("one", &labels).await.unwrap_err();
    assert!(causes(&error).contains("No space left"), "{}", causes(&error));
    assert_eq!(fixture.engine.get("one").await.unwrap().unwrap().labels, BTreeMap::new(), "as it was");

    // It ends all the same, and starts again when there is room.
    fixture.engine.stop("one", Duration::from_secs(1)).await.unwrap();
    assert_eq!(processes_in(&fixture.box_dir("one")), Vec::<i32>::new());
    let state = fixture.engine.get("one").await.unwrap().unwrap().state;
    assert!(matches!(state, BoxState::Stopped { .. }), "{state:?}");
    if let Err(error) = fixture.engine.start("one").await {
        assert!(causes(&error).contains("No space left"), "{}", causes(&error));
    }
    fs::remove_file(&ballast).unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.sh("one", "cat /root/file; echo more > /root/more").await.ok(), "kept");
    fixture.engine.create("two", &limited, &BTreeMap::new()).await.unwrap();
    fixture.sh("two", "echo kept > /root/file; sync").await.ok();

    // A limit is no reservation: where the machine has no room the sandbox has none, and its disk is mended at the next start.
    small.fill();
    fixture.sh("two", "head -c 16M /dev/urandom > /root/big; sync").await;
    fixture.engine.stop("two", Duration::from_secs(1)).await.unwrap();
    fs::remove_file(&ballast).unwrap();
    fixture.engine.start("two").await.unwrap();
    assert_eq!(fixture.sh("two", "cat /root/file; echo more > /root/more").await.ok(), "kept");

    // And it can be deleted when there is none.
    small.fill();
    for id in ["one", "two"] {
        fixture.engine.delete(id).await.unwrap();
        assert!(!fixture.box_dir(id).exists());
    }
}
