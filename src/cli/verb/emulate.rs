//! `emulate`: serves a vendor's API in front of a provider of ours until it is stopped.

use std::collections::BTreeMap;
use std::io::Write as _;

use tokio_util::sync::CancellationToken;

use super::sim::stdin_ends;
use crate::cli::args::{EmulateArgs, EmulateCommand};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session::Signals;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::hint;
use crate::model::Image;
use crate::model::with_causes;
use crate::provider::{Capabilities, Support, builtin_capabilities};
use crate::server::emulate::{Options, daytona, e2b};

/// One that is ready to serve.
enum Emulator {
    E2b(e2b::Emulator),
    Daytona(daytona::Emulator),
}

/// Runs an emulator.
pub async fn run(cx: &Context, command: &EmulateCommand) -> Result<Exit, CliError> {
    let (vendor, args) = match command {
        EmulateCommand::E2b(args) => ("e2b", args),
        EmulateCommand::Daytona(args) => ("daytona", args),
    };
    if !args.listen.ip().is_loopback() && !args.allow_remote {
        let text = format!("{} is not this machine alone; `--allow-remote` allows it", args.listen);
        return Err(CliError::usage(text));
    }
    let api_key = args.api_key.clone().or_else(|| cx.var("POCKETENV_EMULATE_API_KEY").map(str::to_owned));
    if args.allow_remote && api_key.is_none() {
        return Err(CliError::usage("others may ask, so there must be a key: set POCKETENV_EMULATE_API_KEY"));
    }
    let name = cx.selection().provider.as_deref().unwrap_or("local");
    let sheet = builtin_capabilities().iter().find(|sheet| sheet.provider == name).ok_or_else(|| {
        CliError::usage(format!("there is no provider `{name}`"))
            .hint(hint::unknown(name, builtin_capabilities().iter().map(|sheet| sheet.provider)))
    })?;
    let images = images(args, sheet)?;
    let provider = cx.app.open_provider(sheet, None).await?;
    let project = cx.selection().project.clone().unwrap_or_else(|| format!("emulate-{vendor}"));
    let environment = cx.app.environment();
    let state = args.state.clone().unwrap_or_else(|| {
        environment.directories.state.join("emulate").join(format!("{}.json", project.replace('/', "-")))
    });
    let options = Options {
        provider,
        project,
        state,
        images,
        api_key,
        clock: environment.clock.clone(),
        ids: environment.ids.clone(),
    };
    let failed = |error: &dyn std::error::Error| CliError::new(Exit::Failed, with_causes(error));
    let mut signals = Signals::new().map_err(|error| failed(&error))?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .map_err(|error| CliError::system(format!("listening on {}", args.listen), &error))?;
    let address = listener.local_addr().map_err(|error| CliError::system("listening", &error))?;
    let remote = args.allow_remote;
    let emulator = match command {
        EmulateCommand::E2b(_) => e2b::Emulator::open(options, remote).await.map(Emulator::E2b),
        EmulateCommand::Daytona(_) => daytona::Emulator::open(options, remote).await.map(Emulator::Daytona),
    };
    let emulator = emulator.map_err(|error| failed(&error))?;
    // Whoever started it reads the address here, and knows that it is there.
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}")?;
    out.flush()?;
    let key = if args.allow_remote || args.api_key.is_some() { "KEY" } else { "any" };
    let name_of = if vendor == "e2b" { "E2B" } else { "Daytona" };
    let urls = match command {
        EmulateCommand::E2b(_) => {
            format!("E2B_API_URL=http://{address} E2B_SANDBOX_URL=http://{address} E2B_API_KEY={key}")
        }
        EmulateCommand::Daytona(_) => format!("DAYTONA_API_URL=http://{address} DAYTONA_API_KEY={key}"),
    };
    cx.ui.say(&format!("{name_of} on provider `{name}`: {urls}"));
    let stop = CancellationToken::new();
    let ending = stop.clone();
    let until_stdin_ends = args.until_stdin_ends;
    tokio::spawn(async move {
        tokio::select! {
            _ = signals.next() => {}
            () = stdin_ends(), if until_stdin_ends => {}
        }
        ending.cancel();
        // A second signal ends it now; what is left is found by its labels.
        let code = signals.next().await;
        std::process::exit(code);
    });
    let served = match emulator {
        Emulator::E2b(emulator) => emulator.serve(listener, args.keep, stop).await,
        Emulator::Daytona(emulator) => emulator.serve(listener, args.keep, stop).await,
    };
    served.map_err(|error| CliError::system("serving", &error))?;
    Ok(Exit::Done)
}

/// The images by the vendor's names, as far as the provider has such images.
fn images(args: &EmulateArgs, sheet: &Capabilities) -> Result<BTreeMap<String, Image>, CliError> {
    let mut images = BTreeMap::from([("base".to_owned(), Image::Host)]);
    for pair in &args.template {
        let image = match pair.value.as_str() {
            "host" => Image::Host,
            text => Image::Oci(text.to_owned()),
        };
        if let Some(Support::Refused { because, instead }) = sheet.field(&["image"], Some(&pair.value)) {
            let text = format!("--template {}: provider `{}` {because}", pair.key, sheet.provider);
            return Err(CliError::usage(text).hint((*instead).to_owned()));
        }
        images.insert(pair.key.clone(), image);
    }
    Ok(images)
}
