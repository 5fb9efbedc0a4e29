//! A second fence around a sandbox, `landlock(7)`: a file that is not reached through the sandbox's own root cannot be opened, whatever descriptor
//! of a directory elsewhere a process inside got hold of. Signals and abstract sockets stop at it too, where the kernel is new enough.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, Scope, path_beneath_rules,
};

/// The newest version of which everything is asked for.
const NEWEST: ABI = ABI::V6;

/// What is inside: the root, and the one device that a command may be given from outside as a stream and open again by `/dev/stdin`.
const INSIDE: [&str; 2] = ["/", "/dev/null"];

/// Puts the fence around this process and all that it will start. Its root must be the sandbox's already.
///
/// # Errors
/// If the kernel has no Landlock, or one without version 2, which refuses to move a file from one directory into another.
pub fn put_up() -> io::Result<()> {
    let restrict = || -> Result<(), RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rules(path_beneath_rules(INSIDE, AccessFs::from_all(NEWEST)))?
            .restrict_self()
            .map(drop)
    };
    restrict().map_err(io::Error::other)
}
