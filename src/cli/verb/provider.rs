//! `provider`: where sandboxes can live, and what each place can do.

use serde::Serialize;

use crate::cli::args::ProviderCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::table::Table;
use crate::cli::ui::{hint, time};
use crate::provider::{Capabilities, ChangeClass, StopMeaning, Support, builtin_capabilities};

#[derive(Serialize)]
struct Providers<'a> {
    providers: Vec<&'a Capabilities>,
}

/// Lists or shows the capability sheets.
pub fn run(cx: &Context, command: &ProviderCommand) -> Result<Exit, CliError> {
    let sheets = builtin_capabilities();
    let names = || sheets.iter().map(|sheet| sheet.provider.to_owned()).collect();
    match command {
        ProviderCommand::List => {
            let text = |_| {
                let mut table = Table::new(["NAME", "STOP", "LABELS", "SUMMARY"]);
                for sheet in sheets {
                    table.row([
                        sheet.provider.into(),
                        stop(sheet.stop).into(),
                        yes(sheet.labels).into(),
                        sheet.summary.into(),
                    ]);
                }
                cx.ui.table(&table)
            };
            cx.ui.show(&Providers { providers: sheets.to_vec() }, names, text)?;
        }
        ProviderCommand::Show { name } => {
            let sheet = sheets.iter().find(|sheet| sheet.provider == name).ok_or_else(|| {
                CliError::new(Exit::Failed, format!("there is no provider `{name}`"))
                    .hint(hint::unknown(name, sheets.iter().map(|sheet| sheet.provider)))
            })?;
            cx.ui.show(sheet, || vec![name.clone()], |_| text(cx, sheet))?;
        }
    }
    Ok(Exit::Done)
}

fn text(cx: &Context, sheet: &Capabilities) -> String {
    let mut facts = Table::new(["PROVIDER", sheet.provider]);
    facts.row(["summary".into(), sheet.summary.into()]);
    facts.row(["stop".into(), stop(sheet.stop).into()]);
    facts.row(["labels".into(), yes(sheet.labels).into()]);
    facts.row(["idempotent create".into(), yes(sheet.idempotent_create).into()]);
    facts.row(["a listing may lag".into(), time::took(sheet.settle_ms).into()]);
    facts.row(["ports from this host".into(), yes(sheet.forwards_from_host).into()]);
    facts.row(["calls at once".into(), sheet.max_concurrency.to_string().into()]);
    let mut fields = Table::new(["FIELD", "A CHANGE NEEDS", "NOTE"]);
    for row in sheet.fields {
        match row.support {
            Support::Honoured(class) => fields.row([row.path.into(), class_word(class).into(), "".into()]),
            Support::Refused { because, instead } => {
                let note =
                    if instead.is_empty() { because.to_owned() } else { format!("{because}; {instead}") };
                fields.row([row.path.into(), "refused".into(), note.into()]);
            }
        }
    }
    format!("{}\n{}", cx.ui.table(&facts), cx.ui.table(&fields))
}

fn stop(meaning: StopMeaning) -> &'static str {
    match meaning {
        StopMeaning::Suspend => "keeps the disk",
        StopMeaning::Destroy => "loses the disk",
    }
}

fn class_word(class: ChangeClass) -> &'static str {
    match class {
        ChangeClass::Live => "nothing",
        ChangeClass::Restart => "a restart",
        ChangeClass::Recreate => "a new sandbox",
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
