//! `image`: the images that the local engine has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::build::{self, BuildError};
use crate::cli::args::{BuildSecret, ImageCommand};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::table::Table;
use crate::cli::ui::time;
use crate::engine::{Engine, EngineConfig, EngineError};
use crate::image::{Digest, ImageError, Progress, Reference, Removed};
use crate::model::{Image, Timestamp, with_causes};
use crate::secret::{self, RedactStream, Redactor, SecretSource, SecretValue};

/// The longest line of a build's output that is shown as one, in bytes.
const MAX_LINE: usize = 4096;

/// Lists, pulls, builds or removes images.
pub async fn run(cx: &Context, command: &ImageCommand) -> Result<Exit, CliError> {
    let environment = cx.app.environment();
    let engine = Engine::new(EngineConfig {
        data_dir: environment.directories.data.clone(),
        runtime_dir: environment.directories.runtime.clone(),
        exe: environment.executable.clone(),
    });
    match command {
        ImageCommand::List => list(cx, &engine).await?,
        ImageCommand::Pull { images } => {
            for image in images {
                pull(cx, &engine, &reference(&environment.cwd, image)?).await?;
            }
        }
        ImageCommand::Build { dir, tag, secrets } => {
            let secrets = build_secrets(cx, secrets).await?;
            build(cx, &engine, &environment.cwd.join(dir), tag.as_deref(), &secrets).await?;
        }
        ImageCommand::Export { image, target } => {
            let image = reference(&environment.cwd, image)?;
            let to = super::target(&environment.cwd, target)?;
            let place = reference(&environment.cwd, &to)?;
            let digest = engine.export_image(&image, &place).await.map_err(failed)?.to_string();
            let found = json!({ "target": to, "digest": digest });
            cx.ui.show(&found, || vec![to.clone()], |_| format!("{to} {digest}\n"))?;
        }
        ImageCommand::Rm { images } => {
            for image in images {
                let reference = reference(&environment.cwd, image)?;
                match engine.remove_image(&reference).await.map_err(failed)? {
                    Some(removed) => cx.ui.say(&format!("removed {reference}; layers: {}", removed.layers)),
                    None => {
                        let error = CliError::new(Exit::Failed, format!("image `{reference}` is not here"));
                        return Err(error.hint("`pocketenv image list` shows those that are".to_owned()));
                    }
                }
            }
        }
        ImageCommand::Gc => {
            let removed = engine.collect_images().await.map_err(failed)?;
            let found =
                json!({ "images": removed.images, "layers": removed.layers, "caches": removed.caches });
            cx.ui.show(&found, Vec::new, |_| {
                let Removed { images, layers, caches } = removed;
                format!("removed {images} images, {layers} layers and {caches} caches of builds\n")
            })?;
        }
    }
    Ok(Exit::Done)
}

async fn list(cx: &Context, engine: &Engine) -> Result<(), CliError> {
    let images = engine.list_images().await.map_err(failed)?;
    let names = || images.iter().map(|image| image.reference.clone()).collect();
    cx.ui.show(&json!({ "images": images }), names, |wide| {
        let mut table = Table::new(["IMAGE", "DIGEST", "SIZE", "PULLED", "SANDBOXES"]);
        for image in &images {
            let digest =
                if wide { image.digest.as_str() } else { image.digest.get(..19).unwrap_or_default() };
            let pulled = Timestamp(i64::try_from(image.pulled_at).unwrap_or(i64::MAX));
            table.row([
                image.reference.as_str().into(),
                digest.into(),
                image.size.map(mebibytes).unwrap_or_default().into(),
                time::cell(Some(pulled), cx.now(), wide).into(),
                image.users.join(", ").into(),
            ]);
        }
        cx.ui.table(&table)
    })?;
    Ok(())
}

async fn pull(cx: &Context, engine: &Engine, reference: &Reference) -> Result<(), CliError> {
    let bar =
        if cx.ui.interactive { indicatif::ProgressBar::new(0) } else { indicatif::ProgressBar::hidden() };
    let layers: Mutex<BTreeMap<Digest, (u64, u64)>> = Mutex::default();
    let say = |progress: Progress| {
        let Ok(mut layers) = layers.lock() else { return };
        layers.insert(progress.layer, (progress.done, progress.size));
        bar.set_length(layers.values().map(|(_, size)| size).sum());
        bar.set_position(layers.values().map(|(done, _)| done).sum());
    };
    let pulled = engine.image(reference, true, &say).await;
    bar.finish_and_clear();
    let (image, _hold) = pulled.map_err(failed)?;
    for note in &image.notes {
        cx.ui.say(&format!("note: {note}"));
    }
    let text = |_| format!("{}@{}\n", image.reference, image.digest);
    let found = json!({ "reference": image.reference, "digest": image.digest, "layers": image.layers.len() });
    cx.ui.show(&found, || vec![image.reference.clone()], text)?;
    Ok(())
}

/// The values of `--secret`, by what the Containerfile calls them.
async fn build_secrets(
    cx: &Context,
    asked: &[BuildSecret],
) -> Result<BTreeMap<String, SecretValue>, CliError> {
    let environment = cx.app.environment();
    let mut found = BTreeMap::new();
    for BuildSecret { id, source } in asked {
        let source = match source {
            SecretSource::File(path) => SecretSource::File(environment.cwd.join(path)),
            other => other.clone(),
        };
        let resolved = secret::resolve(&source, &environment.vars, &Default::default()).await;
        let resolved = resolved.map_err(|error| {
            CliError::new(Exit::Failed, format!("--secret id={id}: {}", with_causes(&error)))
        })?;
        if let Some(warning) = resolved.warning {
            cx.ui.warn(&format!("--secret id={id}: {warning}"));
        }
        if found.insert(id.clone(), resolved.value).is_some() {
            return Err(CliError::usage(format!("--secret names id={id} twice")));
        }
    }
    Ok(found)
}

async fn build(
    cx: &Context,
    engine: &Engine,
    dir: &Path,
    tag: Option<&str>,
    secrets: &BTreeMap<String, SecretValue>,
) -> Result<(), CliError> {
    let context = std::path::absolute(dir).map_err(|error| CliError::system(dir.display(), &error))?;
    let name = tag.map(|tag| match tag.parse::<Reference>() {
        Ok(Reference::Registry(name)) if name.digest.is_none() => Ok(Reference::Registry(name)),
        Ok(_) => Err(CliError::usage(format!(
            "`{tag}` is not a name that an image can be given; expected such as `tools` or `tools:1.0`"
        ))),
        Err(error) => Err(CliError::usage(error.to_string())),
    });
    let name = name.transpose()?;
    let pins = BTreeMap::new();
    let values = secrets.iter().map(|(id, value)| (id.clone(), value.expose().into())).collect();
    let request = build::Request {
        context: &context,
        file: None,
        sha256: None,
        name: name.as_ref(),
        pins: &pins,
        secrets: &values,
    };
    // What a command prints may hold what it was given.
    let redactor = Arc::new(Redactor::new(secrets.iter().map(|(id, value)| (id.as_str(), value))));
    let stream: Mutex<Option<RedactStream>> = Mutex::default();
    let line: Mutex<Vec<u8>> = Mutex::default();
    let show = |bytes: &[u8]| {
        let Ok(mut line) = line.lock() else { return };
        for byte in bytes {
            if *byte == b'\n' || line.len() >= MAX_LINE {
                cx.ui.say(&printed(&line));
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    };
    let say = |event: build::Event<'_>| match event {
        build::Event::Pull(_) => {}
        build::Event::Begin(position) => {
            cx.ui.say(&format!("[{}/{}] {}", position.number, position.of, position.text));
        }
        build::Event::Output(bytes) => {
            if let Ok(mut stream) = stream.lock() {
                show(&stream.get_or_insert_with(|| redactor.stream()).push(bytes));
            }
        }
        build::Event::Done { position, cached, took } => {
            if let Ok(mut stream) = stream.lock()
                && let Some(stream) = stream.take()
            {
                show(&stream.finish());
            }
            if let Ok(mut line) = line.lock()
                && !line.is_empty()
            {
                cx.ui.say(&printed(&line));
                line.clear();
            }
            let how = if cached { "cached".to_owned() } else { format!("{:.1} s", took.as_secs_f64()) };
            cx.ui.say(&format!("[{}/{}] {how}", position.number, position.of));
        }
    };
    let (image, _hold) = build::build(engine, &request, &say).await.map_err(|error| match error {
        BuildError::Engine(error) => failed(*error),
        error => CliError::new(Exit::Failed, redactor.redact(&with_causes(&error))),
    })?;
    let text = |_| format!("{}@{}\n", image.reference, image.digest);
    let found = json!({ "reference": image.reference, "digest": image.digest, "layers": image.layers.len() });
    cx.ui.show(&found, || vec![image.reference.clone()], text)?;
    Ok(())
}

/// A line that a command of a build printed: what could move the terminal's cursor is left out.
fn printed(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let last = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    format!("  | {}", last.chars().filter(|c| *c == '\t' || !c.is_control()).collect::<String>())
}

/// A reference of the command line; paths in it are those of the working directory.
fn reference(cwd: &Path, text: &str) -> Result<Reference, CliError> {
    let whole = match Image::file(text) {
        Some((transport, path, name)) => {
            let path = std::path::absolute(cwd.join(path)).map_err(|error| CliError::system(path, &error))?;
            format!("{transport}:{}{name}", path.display())
        }
        None => text.to_owned(),
    };
    whole.parse().map_err(|error: ImageError| CliError::usage(error.to_string()))
}

fn failed(error: EngineError) -> CliError {
    let exit = match &error {
        EngineError::Image(ImageError::Unauthorised(..)) => Exit::NotAuthorised,
        EngineError::Image(ImageError::InUse { .. }) => Exit::Refused,
        _ => Exit::Failed,
    };
    CliError::new(exit, with_causes(&error))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
