//! The manifest as it is understood: merged, rendered, defaulted. Secrets are names.

use serde_json::{Value as Json, json};

use super::{Manifest, Resolved};

impl Manifest {
    /// Everything that `resolved` says should be, as data. Of a secret only its name and the kind of its source are there.
    pub fn config(&self, resolved: &Resolved) -> Json {
        let secrets: serde_json::Map<String, Json> =
            self.secrets().iter().map(|(name, source)| (name.clone(), json!(source.kind()))).collect();
        json!({
            "version": 1,
            "name": resolved.desired.project,
            "secrets": secrets,
            "volumes": resolved.desired.volumes,
            "sandboxes": resolved.desired.sandboxes,
        })
    }
}
