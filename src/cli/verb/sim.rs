//! `sim`: serves a simulated cloud until it is stopped.

use std::collections::BTreeMap;
use std::io::Write as _;

use crate::cli::args::SimArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::hint;
use crate::model::with_causes;
use crate::provider::sim::TOKEN_VARIABLE;
use crate::secret::SecretValue;
use crate::server::sim::{Settings, SimOptions, Simulator, profile};

/// A file of settings is not larger than this.
const MAX_FAULTS_BYTES: u64 = 1 << 20;

/// Serves the cloud.
pub async fn run(cx: &Context, args: &SimArgs) -> Result<Exit, CliError> {
    let settings = settings(&args.chaos, &args.faults)?;
    let token = cx.var(TOKEN_VARIABLE).map(SecretValue::new);
    let options = SimOptions { seed: args.seed, state: args.state.clone(), settings, token };
    let simulator =
        Simulator::open(options).map_err(|error| CliError::new(Exit::Failed, with_causes(&error)))?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .map_err(|error| CliError::system(format!("listening on {}", args.listen), &error))?;
    let address = listener.local_addr().map_err(|error| CliError::system("listening", &error))?;
    // Whoever started it reads the address here, and knows that it is there.
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}")?;
    out.flush()?;
    cx.ui.say(&format!("a simulated cloud, seed {}, profile {}", args.seed, args.chaos));
    tokio::select! {
        () = simulator.serve(listener) => Ok(Exit::Done),
        () = stdin_ends(), if args.until_stdin_ends => Ok(Exit::Done),
        _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
    }
}

/// Waits until standard input ends.
pub async fn stdin_ends() {
    let mut stdin = tokio::io::stdin();
    let mut nothing = [0; 64];
    while matches!(tokio::io::AsyncReadExt::read(&mut stdin, &mut nothing).await, Ok(1..)) {}
}

/// A profile with settings laid over it.
fn settings(name: &str, over: &[String]) -> Result<Settings, CliError> {
    let profile = profile::find(name).ok_or_else(|| {
        let names: Vec<&str> = profile::PROFILES.iter().map(|profile| profile.name).collect();
        CliError::usage(format!("there is no profile `{name}`; there are {}", names.join(", ")))
            .hint(hint::unknown(name, names.iter().copied()))
    })?;
    let mut settings = Settings::default();
    let wrong = |error: crate::server::sim::SettingError| CliError::usage(error.to_string());
    settings.set_all(profile.settings.iter().copied()).map_err(wrong)?;
    for one in over {
        match one.split_once('=') {
            Some((name, value)) => settings.set(name, value).map_err(wrong)?,
            None => {
                let read = read(one)?;
                settings.set_all(read.iter().map(|(n, v)| (n.as_str(), v.as_str()))).map_err(wrong)?;
            }
        }
    }
    Ok(settings)
}

fn read(path: &str) -> Result<BTreeMap<String, String>, CliError> {
    let failed = |what: String| CliError::new(Exit::InvalidConfiguration, format!("faults {path}: {what}"));
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_FAULTS_BYTES {
        return Err(failed("it is too large".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let values: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(|error| failed(format!("expected a JSON object: {error}")))?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(values.into_iter().map(|(name, value)| (name, text(value))).collect())
}
