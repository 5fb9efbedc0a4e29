//! `secret`: the sealed vault. Values come in by standard input and are never printed.

use std::io::Read as _;

use secrecy::zeroize::Zeroizing;
use serde::Serialize;

use crate::app::VaultEntry;
use crate::cli::args::SecretCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::table::Table;
use crate::cli::ui::{prompt, time};
use crate::secret::SecretValue;

/// The largest value that is taken in.
const MAX_VALUE: usize = 1 << 20;

#[derive(Serialize)]
struct Secrets {
    secrets: Vec<VaultEntry>,
}

/// Seals, lists or forgets values.
pub async fn run(cx: &Context, command: &SecretCommand) -> Result<Exit, CliError> {
    match command {
        SecretCommand::Set { name } => {
            let value = read_value(cx, name)?;
            cx.app.seal_secret(name, &value).await?;
            cx.ui.say(&format!(
                "sealed {name}; a manifest uses it as `secrets: {{ NAME: {{ vault: {name} }} }}`"
            ));
        }
        SecretCommand::List => {
            let secrets = cx.app.sealed_secrets().await?;
            let names = || secrets.iter().map(|secret| secret.name.clone()).collect();
            let text = |wide| {
                let mut table = Table::new(["NAME", "CREATED", "UPDATED"]);
                for secret in &secrets {
                    table.row([
                        secret.name.as_str().into(),
                        time::cell(Some(secret.created_at), cx.now(), wide).into(),
                        time::cell(Some(secret.updated_at), cx.now(), wide).into(),
                    ]);
                }
                cx.ui.table(&table)
            };
            cx.ui.show(&Secrets { secrets: secrets.clone() }, names, text)?;
        }
        SecretCommand::Rm { names } => {
            for name in names {
                cx.app.forget_secret(name).await?;
                cx.ui.say(&format!("removed {name}"));
            }
        }
    }
    Ok(Exit::Done)
}

/// A value from standard input, without one line end; on a terminal it is asked for and not shown.
pub fn read_value(cx: &Context, name: &str) -> Result<SecretValue, CliError> {
    let mut text = Zeroizing::new(String::new());
    if cx.ui.interactive {
        prompt::hidden(&cx.ui, &format!("the value of {name}:"), &mut text)
    } else {
        let limit = MAX_VALUE as u64 + 1;
        std::io::stdin().lock().take(limit).read_to_string(&mut text).map(drop)
    }
    .map_err(|error| CliError::system("reading the value from standard input", &error))?;
    let value = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if value.is_empty() {
        let error = CliError::new(Exit::Failed, format!("there is no value for {name}"));
        return Err(error.hint("standard input is the value: `printf %s VALUE | pocketenv …`".to_owned()));
    }
    if value.len() > MAX_VALUE || value.contains('\0') {
        let text = format!("the value of {name} is longer than {} KiB or holds a NUL byte", MAX_VALUE >> 10);
        return Err(CliError::new(Exit::Failed, text));
    }
    Ok(SecretValue::new(value))
}
