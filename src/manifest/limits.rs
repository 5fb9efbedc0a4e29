//! Numbers against the limits of the provider's sheet: resources and lifetimes that it cannot give are errors at their lines.

use super::diagnostic::{Problem, Problems};
use super::node::Node;
use crate::model::{DesiredSandbox, Duration, Quantity};
use crate::provider::{Capabilities, Range};

/// Checks what a sandbox asks for.
pub(crate) fn check(node: &Node, sandbox: &DesiredSandbox, sheet: &Capabilities, problems: &mut Problems) {
    let (asked, given) = (&sandbox.spec.resources, &sheet.resources);
    let bytes = |quantity: Option<Quantity>| quantity.map(Quantity::as_bytes);
    let mut within = |name: &str, asked: Option<u64>, range: Option<Range>, text: fn(u64) -> String| {
        let (Some(asked), Some(range)) = (asked, range) else { return };
        if (range.min..=range.max).contains(&asked) {
            return;
        }
        let (min, max) = (text(range.min), text(range.max));
        let message = format!(
            "`resources.{name}: {}` cannot be honoured: provider `{}` gives {min} to {max}",
            text(asked),
            sheet.provider
        );
        let help = format!("write {}", if asked < range.min { &min } else { &max });
        problems.push(Problem::error("unsupported", node.span_at(&["resources", name]), message).help(help));
    };
    within("cpu", asked.cpu_millis.map(u64::from), given.cpu_millis, processors);
    within("memory", bytes(asked.memory), given.memory, size);
    within("disk", bytes(asked.disk), given.disk, size);
    if let (Some(ttl), Some(longest)) = (sandbox.spec.lifecycle.ttl, sheet.longest_life_ms)
        && ttl.as_millis() > longest
    {
        let longest = Duration::from_millis(longest);
        let message = format!(
            "`lifecycle.ttl: {ttl}` cannot be honoured: provider `{}` ends every sandbox after {longest}",
            sheet.provider
        );
        let help = format!("write {longest} or less");
        problems.push(Problem::error("unsupported", node.span_at(&["lifecycle", "ttl"]), message).help(help));
    }
}

/// Thousandths of a processor, as a manifest has them.
pub(crate) fn processors(millis: u64) -> String {
    format!("{}", millis as f64 / 1000.0)
}

/// Bytes, as a manifest has them.
pub(crate) fn size(bytes: u64) -> String {
    Quantity::from_bytes(bytes).to_string()
}
