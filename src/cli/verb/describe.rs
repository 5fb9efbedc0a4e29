//! `describe`: everything known about resources.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{events, status};
use crate::cli::args::DescribeArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::{self, Role};
use crate::cli::ui::table::{Cell, Table, printable};
use crate::cli::ui::time;
use crate::model::ConditionStatus;
use crate::reconcile::status::ResourceStatus;
use crate::store::{EventQuery, RecordedEvent};

/// Events shown per resource.
const EVENTS: usize = 10;

/// Prints resources with their conditions and their newest events.
pub async fn run(cx: &Context, args: &DescribeArgs) -> Result<Exit, CliError> {
    let status = status::measure(cx, &args.addresses).await?;
    let store = cx.app.store().await?;
    let mut all = Vec::new();
    for resource in &status.resources {
        let query = EventQuery { address: Some(resource.address.clone()), ..EventQuery::default() };
        all.push((resource, store.events(&status.project, query, EVENTS).await?));
    }
    let resources: Vec<Value> = all.iter().map(|(resource, events)| data(resource, events)).collect();
    let names = || all.iter().map(|(resource, _)| resource.address.to_string()).collect();
    let text = |wide| {
        let texts: Vec<String> =
            all.iter().map(|(resource, events)| text(cx, resource, events, wide)).collect();
        texts.join("\n")
    };
    cx.ui.show(&json!({ "project": status.project, "resources": resources }), names, text)?;
    Ok(Exit::Done)
}

fn data(resource: &ResourceStatus, events: &[RecordedEvent]) -> Value {
    let mut value = json!(resource);
    if let Value::Object(fields) = &mut value {
        fields.insert("events".to_owned(), events.iter().map(events::data).collect());
    }
    value
}

fn text(cx: &Context, resource: &ResourceStatus, recorded: &[RecordedEvent], wide: bool) -> String {
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
    fact("reached at", &status::reached_at(resource.endpoint.as_ref()));
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
