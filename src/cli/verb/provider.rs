//! `provider`: where sandboxes can live, what each place can do, whether it is set up, and whether it keeps its promises.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::secret::read_value;
use crate::app::conformance::{self, CaseReport, CaseResult, Conformance, ConformanceOptions};
use crate::app::{Configured, Error, SettingSource};
use crate::cli::args::ProviderCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session::Signals;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::table::Table;
use crate::cli::ui::{hint, time};
use crate::manifest::Manifest;
use crate::model::Image;
use crate::provider::{
    Capabilities, ChangeClass, ProviderSetting, StopMeaning, Support, builtin_capabilities,
};

/// What the kit runs in where a provider takes images and has none of its own.
const TEST_IMAGE: &str = "docker.io/library/debian:stable-slim";

#[derive(Serialize)]
struct Providers<'a> {
    providers: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    sheet: &'a Capabilities,
    /// Everything that is required is set.
    configured: bool,
    /// Where each setting comes from.
    set_up: Vec<Configured>,
}

/// Lists or shows the capability sheets, keeps credentials, runs the conformance kit.
pub async fn run(cx: &Context, command: &ProviderCommand) -> Result<Exit, CliError> {
    match command {
        ProviderCommand::List => list(cx).await,
        ProviderCommand::Show { name } => {
            let sheet = find(name)?;
            let entry = entry(cx, sheet, manifest(cx)?.as_ref()).await?;
            cx.ui.show(&entry, || vec![name.clone()], |_| text(cx, &entry))?;
            Ok(Exit::Done)
        }
        ProviderCommand::Login { name, setting } => login(cx, name, setting.as_deref()).await,
        ProviderCommand::Logout { name } => {
            let forgotten = cx.app.logout(find(name)?).await?;
            match forgotten.is_empty() {
                true => cx.ui.say(&format!("nothing is sealed for {name}")),
                false => cx.ui.say(&format!("removed {} of {name}", forgotten.join(", "))),
            }
            Ok(Exit::Done)
        }
        ProviderCommand::Test { name, case, image } => {
            test(cx, name, case.as_deref(), image.as_deref()).await
        }
    }
}

fn find(name: &str) -> Result<&'static Capabilities, CliError> {
    let sheets = builtin_capabilities();
    sheets.iter().copied().find(|sheet| sheet.provider == name).ok_or_else(|| {
        CliError::new(Exit::Failed, format!("there is no provider `{name}`"))
            .hint(hint::unknown(name, sheets.iter().map(|sheet| sheet.provider)))
    })
}

/// The manifest, if there is one: it may set providers up.
fn manifest(cx: &Context) -> Result<Option<Manifest>, CliError> {
    match cx.app.load(cx.selection()) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(Error::NoManifest) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn entry<'a>(
    cx: &Context,
    sheet: &'a Capabilities,
    manifest: Option<&Manifest>,
) -> Result<Entry<'a>, CliError> {
    let set_up = cx.app.setup(sheet, manifest).await?;
    let configured = set_up.iter().all(|one| !one.setting.required || one.from.is_some());
    Ok(Entry { sheet, configured, set_up })
}

async fn list(cx: &Context) -> Result<Exit, CliError> {
    let manifest = manifest(cx)?;
    let mut providers = Vec::new();
    for sheet in builtin_capabilities() {
        providers.push(entry(cx, sheet, manifest.as_ref()).await?);
    }
    let names = || providers.iter().map(|entry| entry.sheet.provider.to_owned()).collect();
    let text = |_| {
        let mut table = Table::new(["NAME", "CONFIGURED", "STOP", "LABELS", "SUMMARY"]);
        for entry in &providers {
            table.row([
                entry.sheet.provider.into(),
                configured(entry).into(),
                stop(entry.sheet.stop).into(),
                yes(entry.sheet.labels).into(),
                entry.sheet.summary.into(),
            ]);
        }
        cx.ui.table(&table)
    };
    let shown = names();
    let text = text(false);
    cx.ui.show(&Providers { providers }, || shown, |_| text)?;
    Ok(Exit::Done)
}

/// Whether a provider is set up, and by what; never a value.
fn configured(entry: &Entry<'_>) -> String {
    let missing = entry.set_up.iter().find(|one| one.setting.required && one.from.is_none());
    match missing {
        Some(one) => {
            let variable = one.setting.variable.map_or_else(String::new, |variable| format!(" ({variable})"));
            format!("no: {}{variable}", one.setting.name)
        }
        None => {
            let set = entry
                .set_up
                .iter()
                .filter_map(|one| Some(format!("{}: {}", one.setting.name, word(one.from?))));
            let set: Vec<String> = set.collect();
            if set.is_empty() { "yes".to_owned() } else { format!("yes, {}", set.join(", ")) }
        }
    }
}

fn word(source: SettingSource) -> &'static str {
    match source {
        SettingSource::Manifest => "manifest",
        SettingSource::Environment => "environment",
        SettingSource::Vault => "login",
    }
}

async fn login(cx: &Context, name: &str, setting: Option<&str>) -> Result<Exit, CliError> {
    let sheet = find(name)?;
    let credentials: Vec<&ProviderSetting> = sheet.settings.iter().filter(|setting| setting.secret).collect();
    let names = || credentials.iter().map(|credential| credential.name);
    let chosen = match (setting, &credentials[..]) {
        (_, []) => {
            let text = format!("provider `{name}` has no credentials; there is nothing to log in to");
            return Err(CliError::new(Exit::Failed, text));
        }
        (None, [only]) => only,
        (None, _) => {
            let names: Vec<&str> = names().collect();
            let text = format!("provider `{name}` has several credentials: {}", names.join(", "));
            return Err(CliError::usage(text).hint("`--setting NAME` says which".to_owned()));
        }
        (Some(wanted), all) => all.iter().find(|credential| credential.name == wanted).ok_or_else(|| {
            CliError::new(Exit::Failed, format!("provider `{name}` has no credential `{wanted}`"))
                .hint(hint::unknown(wanted, names()))
        })?,
    };
    let value = read_value(cx, &format!("{name} {}", chosen.name))?;
    cx.app.login(sheet, chosen, &value).await?;
    cx.ui.say(&format!("sealed {} of {name}", chosen.name));
    if let Some(variable) = chosen.variable.filter(|variable| cx.var(variable).is_some()) {
        cx.ui.warn(&format!("{variable} is set, and counts before what was sealed"));
    }
    Ok(Exit::Done)
}

async fn test(cx: &Context, name: &str, case: Option<&str>, image: Option<&str>) -> Result<Exit, CliError> {
    let sheet = find(name)?;
    if let Some(pattern) = case
        && !conformance::cases().any(|case| case.name.contains(pattern))
    {
        let error = CliError::usage(format!("no case has `{pattern}` in its name"));
        return Err(error.hint(hint::unknown(pattern, conformance::cases().map(|case| case.name))));
    }
    let image = match image {
        Some("host") => Image::Host,
        Some(text) => match text.split_once(':') {
            Some(("base", name)) => Image::Base(name.to_owned()),
            Some(("snapshot", id)) => Image::Snapshot(id.to_owned()),
            _ => Image::Oci(text.to_owned()),
        },
        None if sheet.honours(&["image"], Some("host")) => Image::Host,
        None => Image::Oci(TEST_IMAGE.to_owned()),
    };
    let manifest = manifest(cx)?;
    let provider = cx.app.open_provider(sheet, manifest.as_ref()).await?;
    let options = ConformanceOptions { pattern: case.map(str::to_owned), image };
    let environment = cx.app.environment();
    let (clock, ids) = (environment.clock.clone(), environment.ids.clone());
    let cancel = CancellationToken::new();
    let mut told = |report: &CaseReport| cx.ui.say(&line(report));
    let mut signals = Signals::new()?;
    let report = {
        let kit = conformance::run(provider, &options, clock, ids, &cancel, &mut told);
        tokio::pin!(kit);
        tokio::select! {
            report = &mut kit => report,
            _ = signals.next() => {
                cx.ui.say("stopping: what was made is being removed");
                cancel.cancel();
                tokio::select! {
                    report = &mut kit => report,
                    _ = signals.next() => {
                        cx.ui.warn(&format!("what is left at `{name}` is labelled with projects `conformance-…`; `pocketenv gc` finds it"));
                        return Ok(Exit::Interrupted);
                    }
                }
            }
        }
    };
    let failed = || {
        report.cases.iter().filter(|c| c.result == CaseResult::Failed).map(|c| c.name.to_owned()).collect()
    };
    cx.ui.show(&report, failed, |_| verdict(cx, &report))?;
    Ok(match (cancel.is_cancelled(), report.passed) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::Done,
        (false, false) => Exit::Failed,
    })
}

fn line(report: &CaseReport) -> String {
    let evidence = report.evidence.as_deref().map_or_else(String::new, |text| format!(": {text}"));
    match report.result {
        CaseResult::Passed => format!("✓ {} ({})", report.name, time::took(report.elapsed_ms)),
        CaseResult::NotOffered => format!("- {} is not offered{evidence}", report.name),
        CaseResult::Skipped => format!("- {} was not tried{evidence}", report.name),
        CaseResult::Failed => format!("✗ {}{evidence}", report.name),
        CaseResult::Interrupted => format!("✗ {} was called off", report.name),
    }
}

fn verdict(cx: &Context, report: &Conformance) -> String {
    let count = |result| report.cases.iter().filter(|case| case.result == result).count();
    let mut table = Table::new(["CASE", "RESULT", "EVIDENCE"]);
    for case in &report.cases {
        let result = match case.result {
            CaseResult::Passed => "passed",
            CaseResult::NotOffered => "not offered",
            CaseResult::Skipped => "not tried",
            CaseResult::Failed => "FAILED",
            CaseResult::Interrupted => "called off",
        };
        let told = case.evidence.as_deref().unwrap_or(case.promise);
        table.row([case.name.into(), result.into(), told.into()]);
    }
    let mut text = cx.ui.table(&table);
    text.push_str(&format!(
        "\n{} passed, {} not offered, {} not tried, {} failed\n",
        count(CaseResult::Passed),
        count(CaseResult::NotOffered),
        count(CaseResult::Skipped),
        count(CaseResult::Failed),
    ));
    for left in &report.left {
        text.push_str(&format!("left at {}: {left}\n", report.provider));
    }
    text
}

fn text(cx: &Context, entry: &Entry<'_>) -> String {
    let sheet = entry.sheet;
    let mut facts = Table::new(["PROVIDER", sheet.provider]);
    facts.row(["summary".into(), sheet.summary.into()]);
    facts.row(["configured".into(), configured(entry).into()]);
    facts.row(["stop".into(), stop(sheet.stop).into()]);
    let life = sheet.longest_life_ms.map_or_else(|| "no limit".to_owned(), time::took);
    facts.row(["longest life".into(), life.into()]);
    facts.row(["labels".into(), yes(sheet.labels).into()]);
    facts.row(["idempotent create".into(), yes(sheet.idempotent_create).into()]);
    facts.row(["a listing may lag".into(), time::took(sheet.settle_ms).into()]);
    facts.row(["real processes".into(), yes(sheet.processes).into()]);
    facts.row(["input while running".into(), yes(sheet.interactive).into()]);
    facts.row(["terminals".into(), yes(sheet.pty).into()]);
    facts.row(["named sessions".into(), yes(sheet.sessions).into()]);
    facts.row(["ports dialled".into(), yes(sheet.dial).into()]);
    facts.row(["ports from this host".into(), yes(sheet.forwards_from_host).into()]);
    facts.row(["service over HTTP".into(), yes(sheet.service).into()]);
    facts.row(["calls at once".into(), sheet.max_concurrency.to_string().into()]);
    let mut tables = vec![cx.ui.table(&facts)];
    if !entry.set_up.is_empty() {
        let mut settings = Table::new(["SETTING", "VARIABLE", "FROM", "NOTE"]);
        for one in &entry.set_up {
            settings.row([
                one.setting.name.into(),
                one.setting.variable.unwrap_or("-").into(),
                one.from.map_or("-", word).into(),
                one.setting.summary.into(),
            ]);
        }
        tables.push(cx.ui.table(&settings));
    }
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
    tables.push(cx.ui.table(&fields));
    tables.join("\n")
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
