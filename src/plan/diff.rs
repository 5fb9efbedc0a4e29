//! The fields in which two specs differ, by their paths in the manifest.

use serde::Serialize;
use serde_json::Value;

/// One leaf that differs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Difference {
    /// Path segments below the resource, in the manifest's words.
    pub path: Vec<String>,
    pub old: Option<Value>,
    pub new: Option<Value>,
}

impl Difference {
    pub(super) fn dotted(&self) -> String {
        self.path.join(".")
    }
}

/// The smallest fields in which `old` and `new` differ: maps are compared by key, everything else as a whole.
pub(super) fn differences<T: Serialize>(old: &T, new: &T) -> Vec<Difference> {
    let (Ok(old), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(new)) else {
        // Model types always serialise; if one ever does not, "something differs" is the safe answer.
        return vec![Difference { path: vec!["spec".to_owned()], old: None, new: None }];
    };
    let mut found = Vec::new();
    walk(&mut Vec::new(), Some(&old), Some(&new), &mut found);
    found
}

fn walk(path: &mut Vec<String>, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    if old == new {
        return;
    }
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            path.push(key.clone());
            walk(path, a.get(key), b.get(key), found);
            path.pop();
        }
        return;
    }
    let present = |value: Option<&Value>| value.filter(|v| !v.is_null()).cloned();
    found.push(Difference { path: manifest_path(path), old: present(old), new: present(new) });
}

/// The model's field names that differ from the manifest's.
fn manifest_path(path: &[String]) -> Vec<String> {
    let mut path = path.to_vec();
    match path.first().map(String::as_str) {
        Some("mounts") => path[0] = "volumes".to_owned(),
        Some("binds") => path[0] = "sync".to_owned(),
        // `image:`, `base:`, `build:` and `snapshot:` are four ways to say one thing.
        Some("image") if path.get(1).is_some_and(|p| p == "oci") => path.truncate(1),
        Some("image") if path.len() > 1 => {
            path.remove(0);
            if path.ends_with(&["sha256".to_owned()]) {
                path[1] = "context".to_owned();
            }
        }
        // Whatever differs of a secret that is bound is where and how it is bound.
        Some("bound") => {
            let name = path.get(1).cloned().unwrap_or_else(|| "*".to_owned());
            path = vec!["secrets".to_owned(), name, "hosts".to_owned()];
        }
        Some("isolation") => path.insert(1, "require".to_owned()),
        Some("resources") if path.get(1).is_some_and(|p| p == "cpu_millis") => path[1] = "cpu".to_owned(),
        _ => {}
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Image, PortSpec, SandboxSpec};

    #[test]
    fn names_the_smallest_field_in_the_manifests_words() {
        let mut old = SandboxSpec::default();
        let mut new = old.clone();
        new.resources.cpu_millis = Some(500);
        new.ports.insert(3000, PortSpec::default());
        let found: Vec<String> = differences(&old, &new).iter().map(Difference::dotted).collect();
        assert_eq!(found, ["ports.3000", "resources.cpu"]);
        old.image = Image::Oci("debian:13".into());
        new.image = Image::Base("claude".into());
        let found: Vec<String> = differences(&old, &new).iter().map(Difference::dotted).take(2).collect();
        assert_eq!(found, ["base", "image"]);
        assert!(differences(&old, &old.clone()).is_empty());
    }
}
