//! `describe`: everything known about resources.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{events, status};
use crate::app::Project;
use crate::cli::args::DescribeArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::{self, Role};
use crate::cli::ui::table::{Cell, Table, printable};
use crate::cli::ui::time;
use crate::model::{Address, ConditionStatus, Quantity, with_causes};
use crate::reconcile::status::ResourceStatus;
use crate::store::{EventQuery, RecordedEvent};

/// Events shown per resource.
const EVENTS: usize = 10;

/// Prints resources with their conditions and their newest events.
pub async fn run(cx: &Context, args: &DescribeArgs) -> Result<Exit, CliError> {
    let status = status::measure(cx, &args.addresses).await?;
    let store = cx.app.store().await?;
    let project = cx.open().await?;
    let mut all = Vec::new();
    for resource in &status.resources {
        let query = EventQuery { address: Some(resource.address.clone()), ..EventQuery::default() };
        let events = store.events(&status.project, query, EVENTS).await?;
        all.push(Described { resource, events, disk: disk(cx, &project, resource).await });
    }
    let resources: Vec<Value> = all.iter().map(data).collect();
    let names = || all.iter().map(|one| one.resource.address.to_string()).collect();
    let text = |wide| {
        let texts: Vec<String> = all.iter().map(|one| text(cx, one, wide)).collect();
        texts.join("\n")
    };
    cx.ui.show(&json!({ "project": status.project, "resources": resources }), names, text)?;
    Ok(Exit::Done)
}

/// One resource and what is known of it beyond its status.
struct Described<'a> {
    resource: &'a ResourceStatus,
    events: Vec<RecordedEvent>,
    /// The bytes that it takes on the disk.
    disk: Option<u64>,
}

/// What a sandbox takes on the disk. What cannot be measured is told and left out.
async fn disk(cx: &Context, project: &Project<'_>, resource: &ResourceStatus) -> Option<u64> {
    let (Address::Sandbox(_), Some(id)) = (&resource.address, &resource.id) else { return None };
    project.disk_use(&resource.provider, id).await.unwrap_or_else(|error| {
        cx.ui.warn(&format!(
            "what {} takes on the disk is not known: {}",
            resource.address,
            with_causes(&error)
        ));
        None
    })
}

fn data(one: &Described<'_>) -> Value {
    let mut value = json!(one.resource);
    if let Value::Object(fields) = &mut value {
        fields.insert("events".to_owned(), one.events.iter().map(events::data).collect());
        fields.extend(one.disk.map(|bytes| ("disk_bytes".to_owned(), bytes.into())));
    }
    value
}

fn text(cx: &Context, Described { resource, events: recorded, disk }: &Described<'_>, wide: bool) -> String {
    let paint = cx.ui.out;
    let mut out = format!("{}\n", paint.paint(Role::Title, &resource.address.to_string()));
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:<11} {value}");
        }
    };
    fact("provider", &resource.provider);
    fact("id", resource.id.as_deref().unwrap_or_default());
    fact("sync", &paint.paint(style::of_sync(resource.sync), &resource.sync.to_string()));
    fact("health", &paint.paint(style::of_health(resource.health), &resource.health.to_string()));
    fact("phase", &resource.phase);
    fact("since", &time::cell(resource.since, cx.now(), wide));
    fact("restarts", &resource.restarts.map_or_else(String::new, |n| n.to_string()));
    fact("reached at", &status::place(resource));
    fact("on disk", &disk.map_or_else(String::new, |bytes| Quantity::from_bytes(bytes).to_string()));
    fact("why", &printable(&resource.message));
    for note in &resource.notes {
        fact("note", &printable(note));
    }
    if !resource.conditions.is_empty() {
        let mut table = Table::new(["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"]);
        for condition in &resource.conditions {
            let role = match condition.status {
                ConditionStatus::True => Role::Good,
                ConditionStatus::False => Role::Warning,
                ConditionStatus::Unknown => Role::Dim,
            };
            table.row([
                condition.kind.as_str().into(),
                Cell::new(format!("{:?}", condition.status), role),
                condition.reason.as_str().into(),
                time::cell(condition.last_transition, cx.now(), wide).into(),
                condition.message.as_str().into(),
            ]);
        }
        out.push_str(&indented(&cx.ui.table(&table)));
    }
    if !recorded.is_empty() {
        out.push_str(&indented(&events::table(cx, recorded, wide)));
    }
    out
}

fn indented(text: &str) -> String {
    text.lines().fold("\n".to_owned(), |out, line| out + "  " + line + "\n")
}
