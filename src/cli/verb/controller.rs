//! `controller`: runs until it is told to stop, or asks one that runs.

use std::io::Write as _;

use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::controller::{Config, Controller};
use crate::cli::args::{ControllerCommand, ControllerStatusArgs, RunArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::table::Table;
use crate::model::with_causes;
use crate::reconcile::execute::Cancel;
use crate::server::controller::serve;

/// The longest answer of a controller.
const MAX_ANSWER: usize = 64 << 20;
/// How long a controller may take to answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs a controller, or asks one.
pub async fn run(cx: &Context, command: &ControllerCommand) -> Result<Exit, CliError> {
    match command {
        ControllerCommand::Run(args) => control(cx, args).await,
        ControllerCommand::Status(args) => status(cx, args).await,
    }
}

async fn control(cx: &Context, args: &RunArgs) -> Result<Exit, CliError> {
    let config = Config::read(&args.config)
        .map_err(|error| CliError::new(Exit::InvalidConfiguration, with_causes(&error)))?;
    let listen = args.listen.or(config.listen);
    let cancel = on_signal()?;
    let controller = Controller::new(cx.app.clone(), config).await?;
    let serving = match listen {
        None => None,
        Some(address) => {
            let failed = |error| CliError::system(format!("listening on {address}"), &error);
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            // Whoever started it reads the address here, and knows that it is there.
            let mut out = std::io::stdout();
            writeln!(out, "http://{bound}")?;
            out.flush()?;
            // Served until the loop has ended, so that the last status can still be read while running steps finish.
            let stop = tokio_util::sync::CancellationToken::new();
            let task = tokio::spawn(serve(listener, controller.clone(), stop.clone()));
            Some((stop, task))
        }
    };
    cx.ui.say(&format!("following {} sources", controller.config().sources.len()));
    controller.run(&cancel).await?;
    if let Some((stop, task)) = serving {
        stop.cancel();
        if let Ok(Err(error)) = task.await {
            return Err(CliError::system("serving", &error));
        }
    }
    Ok(Exit::Done)
}

/// The first signal ends it in good order, the second one now.
fn on_signal() -> Result<Cancel, CliError> {
    let listen = |kind| signal(kind).map_err(|error| CliError::system("listening for signals", &error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let cancel = Cancel::default();
    let tokens = cancel.clone();
    tokio::spawn(async move {
        for token in [&tokens.graceful, &tokens.now] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(cancel)
}

async fn status(cx: &Context, args: &ControllerStatusArgs) -> Result<Exit, CliError> {
    let asked = tokio::time::timeout(PATIENCE, ask(args)).await;
    let status = asked.map_err(|_| CliError::new(Exit::TimedOut, "the controller does not answer"))??;
    let names = || {
        projects(&status).filter_map(|(_, project)| project["project"].as_str().map(str::to_owned)).collect()
    };
    cx.ui.show(&status, names, |wide| {
        let mut table = Table::new(if wide {
            vec!["SOURCE", "PATH", "PROJECT", "SYNC", "HEALTH", "PHASE", "REVISION", "MESSAGE"]
        } else {
            vec!["SOURCE", "PROJECT", "SYNC", "HEALTH", "PHASE", "REVISION", "MESSAGE"]
        });
        for source in status["sources"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if let Some(message) = source["message"].as_str().filter(|message| !message.is_empty()) {
                cx.ui.warn(&format!("source {}: {message}", text(&source["name"])));
            }
            for project in source["projects"].as_array().into_iter().flatten() {
                let mut row = vec![text(&source["name"])];
                if wide {
                    row.push(text(&project["path"]));
                }
                let revision = text(&project["revision"]);
                row.push(
                    project["project"].as_str().or(project["path"].as_str()).unwrap_or_default().to_owned(),
                );
                row.extend(["sync", "health", "phase"].map(|field| text(&project[field])));
                row.push(if wide { revision } else { revision.chars().take(12).collect() });
                row.push(text(&project["message"]));
                table.row(row.into_iter().map(Into::into).collect::<Vec<_>>());
            }
        }
        cx.ui.table(&table)
    })?;
    Ok(Exit::Done)
}

/// Projects with their sources.
fn projects(status: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let sources = status["sources"].as_array().into_iter().flatten();
    sources.flat_map(|source| {
        source["projects"].as_array().into_iter().flatten().map(move |project| (source, project))
    })
}

async fn ask(args: &ControllerStatusArgs) -> Result<Value, CliError> {
    let failed = |what: &str| {
        CliError::new(Exit::Failed, format!("asking the controller at {}: {what}", args.address))
    };
    let stream = TcpStream::connect(args.address).await.map_err(|error| failed(&error.to_string()))?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|error| failed(&error.to_string()))?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/status")
        .header("host", args.address.to_string())
        .body(http_body_util::Empty::<hyper::body::Bytes>::new())
        .map_err(|error| failed(&error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error.to_string()))?;
    if !answer.status().is_success() {
        return Err(failed(&format!("it answers {}", answer.status())));
    }
    let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let bytes = body.map_err(|error| failed(&error.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| failed(&error.to_string()))
}
