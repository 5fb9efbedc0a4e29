//! The capability sheet: what a provider can do, as data. The validator, the planner and the docs all read this one sheet.

use serde::Serialize;

/// What one provider can do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capabilities {
    /// The provider's name, as in `provider: NAME`.
    pub provider: &'static str,
    /// One sentence for people.
    pub summary: &'static str,
    /// What stopping a sandbox means.
    pub stop: StopMeaning,
    /// Whether what runs in a sandbox can be frozen where it stands, with its memory, and go on later.
    pub pause: bool,
    /// Whether objects carry labels; `false` means that identities are encoded in names.
    pub labels: bool,
    /// Whether creating twice with one token makes one sandbox.
    pub idempotent_create: bool,
    /// How long a listing may lag behind a create or delete, in milliseconds. Absence is believed only after this.
    pub settle_ms: u64,
    /// Whether declared ports are forwarded from loopback ports of the host that we choose.
    pub forwards_from_host: bool,
    /// Whether the names of those that a sandbox depends on lead to their ports by links, which are then made.
    pub names_by_links: bool,
    /// Whether it speaks to a service over HTTP, which may refuse and whose answers may be lost.
    pub service: bool,
    /// How many calls may be under way at once.
    pub max_concurrency: usize,
    /// Whether what runs inside is real. A simulated sandbox only remembers what it was asked for.
    pub processes: bool,
    /// Whether a running command is given its input as it comes; where not, all of it has to be there before the command starts.
    pub interactive: bool,
    /// Whether commands run on a terminal.
    pub pty: bool,
    /// Whether there are named sessions: terminals that outlive those who look at them.
    pub sessions: bool,
    /// Whether ports inside can be dialled.
    pub dial: bool,
    /// How long a sandbox may live at most, in milliseconds; `None` for no limit.
    pub longest_life_ms: Option<u64>,
    /// What may be asked for in `resources`.
    pub resources: ResourceRanges,
    /// Its settings: `providers.NAME.SETTING` in the manifest, and the vendor's own environment variables.
    pub settings: &'static [ProviderSetting],
    /// What it does with each field of a sandbox or volume. The longest matching path decides; a field that matches nothing is supported and,
    /// for a provider-level field, needs a recreate when it changes.
    pub fields: &'static [FieldSupport],
}

/// What stopping means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMeaning {
    /// The disk is kept.
    Suspend,
    /// The disk is lost.
    Destroy,
}

/// What may be asked for in `resources`; a limit that is absent is not known, and the provider decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResourceRanges {
    /// Thousandths of a processor.
    pub cpu_millis: Option<Range>,
    /// Memory, in bytes.
    pub memory: Option<Range>,
    /// Disk, in bytes.
    pub disk: Option<Range>,
}

impl ResourceRanges {
    /// Nothing is known of any limit.
    pub const ANY: Self = Self { cpu_millis: None, memory: None, disk: None };
}

/// The least and the most, both allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
}

/// A setting of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProviderSetting {
    /// Its name, as in `providers.NAME.SETTING`.
    pub name: &'static str,
    /// The vendor's own environment variable for it, which counts where the manifest says nothing.
    pub variable: Option<&'static str>,
    /// Whether it is a credential: the manifest may only name a secret, `provider login` seals one, and it is never shown.
    pub secret: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What it is, for people.
    pub summary: &'static str,
}

/// The value that stands for every host name in a row for `network.allow.*`, beside those for addresses.
pub const EGRESS_NAME: &str = "NAME";

/// The value that stands for every image of this machine (`oci:PATH` and the like) in a row for `image`. A sheet without such a row takes
/// images of registries only.
pub const IMAGE_FILE: &str = "PATH";
/// The value in a sheet that stands for every name under `base` that is none of ours.
pub const BASE_OTHER: &str = "OTHER";

/// The value in a sheet that stands for the command of the image, where a service has none. A sheet without such a row cannot tell what it is.
pub const IMAGE_COMMAND: &str = "IMAGE";

/// What a provider does with one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FieldSupport {
    /// The field's path as in the manifest, below `sandboxes.NAME` (`network.egress`) or, with the prefix `volumes.`, below `volumes.NAME`
    /// (`volumes.s3`). `*` stands for any one name or index; `=value` at the end restricts the row to that value (`network.mode=none`).
    pub path: &'static str,
    /// What it does.
    pub support: Support,
}

/// What a provider does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// It honours it; a change needs this.
    Honoured(ChangeClass),
    /// It cannot; using the field is an error at its line.
    Refused {
        /// Why, as a clause after "provider `local` …".
        because: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
}

/// What changing a provider-level field needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeClass {
    /// Nothing: it is changed while the sandbox runs.
    Live,
    /// A stop and a start; the disk is kept.
    Restart,
    /// A new sandbox; what is on the disk is lost.
    Recreate,
}

impl Capabilities {
    /// The sheet of a provider that has nothing. A sheet is written over it, so that what it forgets to mention is not offered.
    pub const NOTHING: Self = Self {
        provider: "",
        summary: "",
        stop: StopMeaning::Destroy,
        pause: false,
        labels: false,
        idempotent_create: false,
        settle_ms: 0,
        forwards_from_host: false,
        names_by_links: false,
        service: false,
        max_concurrency: 1,
        processes: false,
        interactive: false,
        pty: false,
        sessions: false,
        dial: false,
        longest_life_ms: None,
        resources: ResourceRanges::ANY,
        settings: &[],
        fields: &[],
    };

    /// Whether the sheet says that it honours the field at `path`, with `value` if that is given.
    pub fn honours(&self, path: &[&str], value: Option<&str>) -> bool {
        matches!(self.field(path, value), Some(Support::Honoured(_)))
    }

    /// One of its settings.
    pub fn setting(&self, name: &str) -> Option<&'static ProviderSetting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// What happens with the field at `path` (segments below the sandbox or volume), if the sheet says anything about it. `value` is the scalar there, as text.
    pub fn field(&self, path: &[&str], value: Option<&str>) -> Option<&Support> {
        self.fields
            .iter()
            .filter_map(|row| row.matches(path, value).map(|weight| (weight, &row.support)))
            .max_by_key(|(weight, _)| *weight)
            .map(|(_, support)| support)
    }

    /// What changing the provider-level field at `path` from or to `value` needs, if that is known.
    pub fn change_class(&self, path: &[&str], value: Option<&str>) -> ChangeClass {
        match self.field(path, value) {
            Some(Support::Honoured(class)) => *class,
            Some(Support::Refused { .. }) | None => ChangeClass::Recreate,
        }
    }
}

/// A row of a sheet: the field is honoured, and a change of it needs `class`.
pub(super) const fn honoured(path: &'static str, class: ChangeClass) -> FieldSupport {
    FieldSupport { path, support: Support::Honoured(class) }
}

/// A row of a sheet: the field is refused, `because` of this, with what to do `instead`.
pub(super) const fn refused(
    path: &'static str,
    because: &'static str,
    instead: &'static str,
) -> FieldSupport {
    FieldSupport { path, support: Support::Refused { because, instead } }
}

/// A setting that is no credential and may be left out.
pub(super) const fn setting(
    name: &'static str,
    variable: Option<&'static str>,
    summary: &'static str,
) -> ProviderSetting {
    ProviderSetting { name, variable, secret: false, required: false, summary }
}

impl FieldSupport {
    /// How specifically this row speaks of the field: the number of matching segments, a value counting as one more. `None` if it does not.
    pub(crate) fn matches(&self, path: &[&str], value: Option<&str>) -> Option<usize> {
        // Most rows speak of another field: that is seen before anything is taken apart.
        if !self.path.starts_with('*') && !path.first().is_some_and(|first| self.path.starts_with(first)) {
            return None;
        }
        let (pattern, wanted) = match self.path.split_once('=') {
            Some((pattern, wanted)) => (pattern, Some(wanted)),
            None => (self.path, None),
        };
        let mut segments = 0;
        let mut rest = path.iter();
        for expected in pattern.split('.') {
            let found = rest.next()?;
            if expected != "*" && expected != *found {
                return None;
            }
            segments += 1;
        }
        match wanted {
            None => Some(segments * 2),
            Some(wanted) if rest.next().is_none() && value == Some(wanted) => Some(segments * 2 + 1),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(fields: &'static [FieldSupport]) -> Capabilities {
        Capabilities { provider: "test", fields, ..Capabilities::NOTHING }
    }

    #[test]
    fn the_most_specific_row_decides() {
        const NO: Support = Support::Refused { because: "cannot", instead: "" };
        const FIELDS: &[FieldSupport] = &[
            FieldSupport { path: "network", support: Support::Honoured(ChangeClass::Restart) },
            FieldSupport { path: "network.egress=deny", support: NO },
            FieldSupport { path: "ports.*.public", support: NO },
        ];
        let sheet = sheet(FIELDS);
        assert_eq!(sheet.change_class(&["network", "mode"], None), ChangeClass::Restart);
        assert_eq!(sheet.field(&["network", "egress"], Some("deny")), Some(&NO));
        assert_ne!(sheet.field(&["network", "egress"], Some("allow")), Some(&NO));
        assert_eq!(sheet.field(&["ports", "3000", "public"], Some("true")), Some(&NO));
        assert_eq!(sheet.change_class(&["image"], None), ChangeClass::Recreate);
    }
}
