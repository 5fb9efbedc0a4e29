//! What is shipped to run it: the systemd unit, by systemd's own checks, and the container, as far as it can be checked without one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::scenarios::world::program;

fn dist(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(name)).unwrap()
}

/// `systemd-analyze` with its output, or nothing where it is not installed.
fn analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).env("SYSTEMD_COLORS", "0").output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: systemd-analyze is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The unit with the program where it is here, and more in its service.
fn unit(dir: &Path, more: &str) -> PathBuf {
    let here = format!("ExecStart={} ", program().display());
    let unit = dist("pocketenv-controller.service").replace("ExecStart=/usr/local/bin/pocketenv ", &here);
    assert!(unit.contains(&here), "{unit}");
    let more = more.replace("[Service]\n", "");
    let path = dir.join("pocketenv-controller.service");
    std::fs::write(&path, unit.replace("[Install]", &format!("{more}\n[Install]"))).unwrap();
    path
}

#[test]
fn the_unit_is_what_systemd_understands_and_as_tight_as_it_says() {
    for (more, exposure) in [(String::new(), "52"), (dist("pocketenv-controller-elsewhere.conf"), "15")] {
        let dir = tempfile::tempdir().unwrap();
        let path = unit(dir.path(), &more);
        let path = path.to_str().unwrap();
        let Some(verified) = analyze(&["verify", "--man=no", path]) else { return };
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        // Other units of the machine are none of ours.
        let ours = said.lines().filter(|line| line.contains("pocketenv"));
        // Before systemd 254 this is not known, and does no harm.
        let ours: Vec<&str> = ours
            .filter(|line| !line.contains("Unknown key") && line.contains("'DelegateSubgroup'"))
            .collect();
        assert!(ours.is_empty(), "{said}");
        let threshold = format!("--threshold={exposure}");
        let Some(security) = analyze(&["security", "--offline=true", "--no-pager", &threshold, path]) else {
            return;
        };
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&security.stdout),
            String::from_utf8_lossy(&security.stderr)
        );
        assert!(security.status.success(), "{said}");
        assert!(said.contains("Overall exposure level"), "{said}");
    }
}

#[test]
fn what_the_unit_and_the_container_start_is_a_command_line_of_the_program() {
    let unit = dist("pocketenv-controller.service");
    let unit = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let container = dist("Containerfile");
    let container = container.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).unwrap();
    let container: Vec<String> = serde_json::from_str(container).unwrap();
    assert_eq!(container[..3], ["tini", "--", "pocketenv"]);
    let by_unit: Vec<String> = unit.split(' ').skip(1).map(str::to_owned).collect();
    for arguments in [&by_unit[..], &container[3..]] {
        // The whole line is read before help is shown.
        let output = Command::new(program()).args(arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_container_is_built_from_named_images_and_runs_as_nobody_in_particular() {
    let text = dist("Containerfile").replace("\\\n", " ");
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let mut stages: Vec<(&str, &str)> = Vec::new();
    let mut images = std::collections::BTreeMap::new();
    let mut user = "root";
    for line in &lines {
        let (instruction, rest) = line.split_once(' ').unwrap();
        let words: Vec<&str> = rest.split_whitespace().collect();
        match instruction {
            "ARG" => {
                let (name, image) = rest.split_once('=').unwrap();
                let (from, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("no tag: {line}"));
                assert!(from.contains('/') && from.contains('.') && tag != "latest", "{line}");
                images.insert(format!("${{{name}}}"), image);
            }
            "FROM" => {
                let stage = stages.iter().find(|(name, _)| *name == words[0]);
                assert!(stage.is_some() || images.contains_key(words[0]), "{line}");
                user = stage.map_or("root", |(_, user)| user);
                stages.extend(words.get(2).map(|name| (*name, user)));
            }
            "COPY" => {
                if let Some(from) = words[0].strip_prefix("--from=") {
                    assert!(stages.iter().any(|(name, _)| *name == from), "{line}");
                }
            }
            "RUN" if rest.contains("apt-get install") => {
                assert!(
                    rest.contains("--no-install-recommends") && rest.contains("rm -rf /var/lib/apt/lists/*"),
                    "{line}"
                );
            }
            "RUN" | "WORKDIR" | "ENV" | "VOLUME" | "EXPOSE" | "STOPSIGNAL" | "ENTRYPOINT" => {}
            "USER" => {
                user = words[0];
                stages.last_mut().unwrap().1 = user;
            }
            other => panic!("{other} is not expected: {line}"),
        }
    }
    assert_eq!(user, "10001");
    let ignored =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".dockerignore")).unwrap();
    assert!(ignored.lines().any(|line| line == "/target"), "what was built here is not sent to the builder");
}
