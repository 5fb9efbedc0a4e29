//! `import`: existing sandboxes become manifest text, and come under a project.

use serde_json::json;

use crate::app::{Error, manifest_of};
use crate::cli::args::ImportArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;

/// Prints manifest text, or adopts.
pub async fn run(cx: &Context, args: &ImportArgs) -> Result<Exit, CliError> {
    let manifest = match cx.app.load(cx.selection()) {
        Ok(manifest) => Some(manifest),
        Err(Error::NoManifest) => None,
        Err(error) => return Err(error.into()),
    };
    let found = cx.app.found(manifest.as_ref(), args.provider.as_deref(), &args.ids).await?;
    if !args.adopt {
        let project = cx.selection().project.clone().unwrap_or_else(|| "imported".to_owned());
        let value = json!({
            "sandboxes": found.iter().map(|f| json!({ "name": f.name(), "provider": f.provider, "observed": f.sandbox })).collect::<Vec<_>>(),
        });
        cx.ui.show(
            &value,
            || found.iter().map(|f| f.sandbox.id.0.clone()).collect(),
            |_| manifest_of(&project, &found),
        )?;
        if found.is_empty() {
            cx.ui.say("there are no sandboxes");
        }
        return Ok(Exit::Done);
    }
    if args.name.is_some() && found.len() > 1 {
        return Err(CliError::usage("--as names one sandbox; give one id"));
    }
    let project = cx.open().await?;
    for one in &found {
        let name = args.name.clone().unwrap_or_else(|| one.name());
        project.adopt(one, &name).await?;
        cx.ui.say(&format!("{} is sandbox/{name} of project `{}` now", one.sandbox.id, project.name()));
    }
    cx.ui.hint("`pocketenv plan` shows how they differ from the manifest");
    Ok(Exit::Done)
}
