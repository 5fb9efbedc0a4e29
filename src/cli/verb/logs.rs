//! `logs`: what services wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use futures::future::try_join_all;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::{Error, Project, Sandbox};
use crate::cli::args::{LogsArgs, OutputForm};
use crate::cli::context::{Context, names};
use crate::cli::error::CliError;
use crate::cli::session::Signals;
use crate::cli::ui::Ui;
use crate::cli::ui::exit::Exit;
use crate::guest::{self, LogLine, LogOptions};
use crate::model::nearest;

/// The services of one sandbox to show.
struct Source {
    sandbox: Sandbox,
    services: Vec<String>,
}

/// Prints logs; with more than one service each line says whose it is.
pub async fn run(cx: &Context, args: &LogsArgs) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let sources = sources(&project, args).await?;
    let tags: Vec<(String, String)> =
        sources.iter().flat_map(|s| s.services.iter().map(|v| (s.sandbox.name.clone(), v.clone()))).collect();
    if tags.is_empty() {
        cx.ui.say("there are no services");
        return Ok(Exit::Done);
    }
    if cx.ui.form == OutputForm::Json {
        cx.ui.json_stream_header()?;
    }
    let printer = Printer::new(&cx.ui, &tags);
    let options = LogOptions { follow: args.follow, tail: args.tail };
    let reading = try_join_all(sources.iter().map(|source| async {
        let sandbox = &source.sandbox;
        let redactor = match sandbox.redactor().await {
            Ok(redactor) => redactor,
            Err(error) => return Err(project.explain(sandbox, error).await),
        };
        let mut sink = |line: LogLine<'_>| {
            let mut stream = redactor.stream();
            let mut text = stream.push(line.text);
            text.extend(stream.finish());
            printer.print(&sandbox.name, LogLine { text: &text, ..line });
        };
        match guest::logs(sandbox.guest.as_ref(), &source.services, options, &mut sink).await {
            Ok(()) => Ok(()),
            Err(error) => Err(project.explain(sandbox, error.into()).await),
        }
    }));
    let mut signals = Signals::new()?;
    tokio::select! {
        code = signals.next() => return Ok(Exit::Code(code)),
        () = printer.closed.cancelled() => {}
        read = reading => { read?; }
    }
    match printer.failure() {
        Some(error) => Err(error.into()),
        None => Ok(Exit::Done),
    }
}

async fn sources(project: &Project<'_>, args: &LogsArgs) -> Result<Vec<Source>, CliError> {
    let mut wanted: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
    for source in &args.sources {
        match &source.service {
            None => {
                wanted.insert(source.sandbox.clone(), None);
            }
            Some(service) => {
                if let Some(services) =
                    wanted.entry(source.sandbox.clone()).or_insert_with(|| Some(BTreeSet::new()))
                {
                    services.insert(service.clone());
                }
            }
        }
    }
    if wanted.is_empty() {
        let recorded = project.store().recorded(project.name()).await?;
        let with_services = |guest: &crate::model::GuestSpec| !guest.services.is_empty();
        let names =
            recorded.sandboxes.into_iter().filter(|(_, s)| s.guest.as_ref().is_some_and(with_services));
        wanted = names.map(|(name, _)| (name, None)).collect();
    }
    let mut sources = Vec::new();
    for (name, services) in wanted {
        let sandbox = project.sandbox(&name).await?;
        let declared = sandbox.declared.as_ref().map(|guest| &guest.services);
        let services: Vec<String> = match services {
            Some(services) => services.into_iter().collect(),
            None => declared.map(|services| names(services).map(str::to_owned).collect()).unwrap_or_default(),
        };
        if let (Some(declared), Some(unknown)) =
            (declared, services.iter().find(|s| declared.is_some_and(|d| !d.contains_key(*s))))
        {
            let close = nearest(unknown, names(declared)).map(str::to_owned);
            let project = project.name().to_owned();
            return Err(Error::Unknown { kind: "service", name: unknown.clone(), project, close }.into());
        }
        sources.push(Source { sandbox, services });
    }
    Ok(sources)
}

/// Writes whole lines, whoever they come from.
struct Printer<'a> {
    ui: &'a Ui,
    /// What stands before the lines of each service; nothing if there is only one.
    prefixes: BTreeMap<(&'a str, &'a str), String>,
    closed: CancellationToken,
    failure: Mutex<Option<io::Error>>,
}

impl<'a> Printer<'a> {
    fn new(ui: &'a Ui, tags: &'a [(String, String)]) -> Self {
        let one_sandbox = tags.iter().all(|(sandbox, _)| *sandbox == tags[0].0);
        let name = |(sandbox, service): &(String, String)| {
            if one_sandbox { service.clone() } else { format!("{sandbox}/{service}") }
        };
        let width = tags.iter().map(|tag| name(tag).len()).max().unwrap_or(0);
        let prefixes = tags.iter().enumerate().map(|(index, tag)| {
            let prefix = match tags.len() {
                1 => String::new(),
                _ => ui.out.tag(index, &format!("{:<width$} | ", name(tag))),
            };
            ((tag.0.as_str(), tag.1.as_str()), prefix)
        });
        Self { ui, prefixes: prefixes.collect(), closed: CancellationToken::new(), failure: Mutex::new(None) }
    }

    fn print(&self, sandbox: &str, line: LogLine<'_>) {
        let written = if self.ui.form == OutputForm::Json {
            self.ui.json_line(&json!({
                "type": "log",
                "resource": format!("sandbox/{sandbox}/service/{}", line.service),
                "text": String::from_utf8_lossy(line.text),
            }))
        } else {
            let prefix = self.prefixes.get(&(sandbox, line.service)).map_or("", String::as_str);
            // The bytes as the service wrote them: its colours are its own.
            let mut whole = prefix.as_bytes().to_vec();
            whole.extend_from_slice(line.text);
            whole.push(b'\n');
            let mut out = io::stdout().lock();
            out.write_all(&whole).and_then(|()| out.flush())
        };
        if let Err(error) = written {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            self.closed.cancel();
        }
    }

    fn failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
