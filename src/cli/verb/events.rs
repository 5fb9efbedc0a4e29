//! `events`: what happened.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::args::{EventsArgs, OutputForm};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session::Signals;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::Timestamp;
use crate::store::{EventKind, EventQuery, RecordedEvent};

/// Between two looks at the store while following.
const PAUSE: Duration = Duration::from_millis(300);
/// The most read at once.
const MAX: usize = 10_000;

/// Prints events, oldest first.
pub async fn run(cx: &Context, args: &EventsArgs) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let since = args.since.map(|ago| Timestamp(cx.now().0.saturating_sub_unsigned(ago.as_millis())));
    let query = EventQuery { address: args.address.clone(), since, after: None };
    let events = project.store().events(project.name(), query, args.limit.min(MAX)).await?;
    let lines = cx.ui.form == OutputForm::Json || args.follow;
    if !lines {
        let value =
            json!({ "project": project.name(), "events": events.iter().map(data).collect::<Vec<_>>() });
        let names =
            || events.iter().filter_map(|e| e.event.address.as_ref()).map(ToString::to_string).collect();
        cx.ui.show(&value, names, |wide| table(cx, &events, wide))?;
        return Ok(Exit::Done);
    }
    if cx.ui.is_machine() {
        cx.ui.json_stream_header()?;
    }
    let mut after = print(cx, &events)?.unwrap_or(0);
    if !args.follow {
        return Ok(Exit::Done);
    }
    let mut signals = Signals::new()?;
    loop {
        tokio::select! {
            code = signals.next() => return Ok(Exit::Code(code)),
            () = tokio::time::sleep(PAUSE) => {}
        }
        let query = EventQuery { address: args.address.clone(), since, after: Some(after) };
        let events = project.store().events(project.name(), query, MAX).await?;
        after = print(cx, &events)?.unwrap_or(after);
    }
}

/// One line per event; returns the number of the last.
fn print(cx: &Context, events: &[RecordedEvent]) -> Result<Option<u64>, CliError> {
    for event in events {
        if cx.ui.is_machine() {
            cx.ui.json_line(&data(event))?;
        } else {
            cx.ui.line(&line(cx, event))?;
        }
    }
    Ok(events.last().map(|event| event.seq))
}

/// An event as one object, with the fields that every line of a stream has first.
pub fn data(recorded: &RecordedEvent) -> Value {
    let event = &recorded.event;
    json!({
        "type": "event",
        "ts": event.at,
        "level": match event.kind { EventKind::Normal => "info", EventKind::Warning => "warn" },
        "resource": event.address,
        "op": event.operation,
        "seq": recorded.seq,
        "run": event.run,
        "reason": event.reason,
        "message": event.message,
    })
}

fn line(cx: &Context, recorded: &RecordedEvent) -> String {
    let event = &recorded.event;
    let address = event.address.as_ref().map_or_else(String::new, ToString::to_string);
    let text = format!("{address} {} {}: {}", event.operation, event.reason, event.message);
    let text = crate::cli::ui::table::printable(text.trim_start());
    format!(
        "{} {}",
        cx.ui.out.paint(Role::Dim, &time::rfc3339(event.at)),
        if event.kind == EventKind::Warning { cx.ui.out.paint(Role::Warning, &text) } else { text }
    )
}

/// Events as a table.
pub fn table(cx: &Context, events: &[RecordedEvent], wide: bool) -> String {
    let mut table = Table::new(if wide {
        vec!["WHEN", "RUN", "RESOURCE", "OP", "REASON", "MESSAGE"]
    } else {
        vec!["WHEN", "RESOURCE", "OP", "REASON", "MESSAGE"]
    });
    for RecordedEvent { event, .. } in events {
        let role = if event.kind == EventKind::Warning { Role::Warning } else { Role::Plain };
        let mut row: Vec<Cell> = vec![Cell::new(time::cell(Some(event.at), cx.now(), wide), Role::Dim)];
        if wide {
            row.push(event.run.map_or_else(String::new, |run| run.to_string()).into());
        }
        row.extend([
            event.address.as_ref().map_or_else(String::new, ToString::to_string).into(),
            event.operation.as_str().into(),
            Cell::new(event.reason.as_str(), role),
            event.message.as_str().into(),
        ]);
        table.row(row);
    }
    cx.ui.table(&table)
}
