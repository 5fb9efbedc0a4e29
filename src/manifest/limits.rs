//! Numbers against the limits of the provider's sheet: resources and lifetimes that it cannot give are errors at their lines.

use super::diagnostic::{Problem, Problems};
use super::node::Node;
use crate::model::{DesiredSandbox, Duration, Quantity};
use crate::provider::{Capabilities, Range};

/// Checks what a sandbox asks for.
pub(crate) fn check(node: &Node, sandbox: &DesiredSandbox, sheet: &Capabilities, problems: &mut Problems) {
    let resources = &sandbox.spec.resources;
    let bytes = |quantity: Option<Quantity>| quantity.map(Quantity::as_bytes);
    let cpu = |millis: u64| format!("{}", millis as f64 / 1000.0);
    let size = |bytes: u64| Quantity::from_bytes(bytes).to_string();
    let asked: [(&str, Option<u64>, Option<Range>, &dyn Fn(u64) -> String); 3] = [
        ("cpu", resources.cpu_millis.map(u64::from), sheet.resources.cpu_millis, &cpu),
        ("memory", bytes(resources.memory), sheet.resources.memory, &size),
        ("disk", bytes(resources.disk), sheet.resources.disk, &size),
    ];
    for (name, asked, range, text) in asked {
        let (Some(asked), Some(range)) = (asked, range) else { continue };
        if (range.min..=range.max).contains(&asked) {
            continue;
        }
        let (min, max) = (text(range.min), text(range.max));
        let message = format!(
            "`resources.{name}: {}` cannot be honoured: provider `{}` gives {min} to {max}",
            text(asked),
            sheet.provider
        );
        let help = format!("write {}", if asked < range.min { &min } else { &max });
        problems.push(Problem::error("unsupported", node.span_at(&["resources", name]), message).help(help));
    }
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
