//! Embeds the built-in presets and the base images: every `presets/NAME.yaml` and `images/NAME/Containerfile` becomes a `(NAME, text)` pair.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=presets");
    println!("cargo::rerun-if-changed=images");
    link_at_a_fixed_address();
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".to_owned());
    let out = std::env::var("OUT_DIR").unwrap_or_else(|_| ".".to_owned());
    let (root, out) = (Path::new(&root), Path::new(&out));
    let yaml = |path: &Path| path.extension().is_some_and(|e| e == "yaml").then(|| path.to_owned());
    embed(&root.join("presets"), yaml, &out.join("presets.rs"))?;
    let image = |path: &Path| Some(path.join("Containerfile")).filter(|file| file.is_file());
    embed(&root.join("images"), image, &out.join("images.rs"))
}

/// Fifty thousand addresses and two hundred pages to write at every start, a quarter of it, are what a program pays that may be
/// loaded anywhere. docs/decisions/0029-fixed-address.md says what is given for that.
fn link_at_a_fixed_address() {
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let is_static = target("FEATURE").split(',').any(|feature| feature == "crt-static");
    if target("OS") == "linux" && target("ENV") == "gnu" && !is_static {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}

/// Writes the list of what `file` makes of the entries of a directory, by their names.
fn embed(dir: &Path, file: impl Fn(&Path) -> Option<PathBuf>, to: &Path) -> std::io::Result<()> {
    let mut found = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                found.extend(file(&path).map(|file| (name, file)));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.sort();
    let mut code = String::from("const EMBEDDED: &[(&str, &str)] = &[\n");
    for (name, path) in found {
        let _ = writeln!(code, "    ({name:?}, include_str!({:?})),", path.display().to_string());
    }
    code.push_str("];\n");
    std::fs::write(to, code)
}
