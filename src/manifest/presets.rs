//! Built-in presets: embedded at build from the top-level `presets` directory, read when asked for.

use std::path::PathBuf;
use std::sync::Arc;

use super::check::Checker;
use super::diagnostic::{Diagnostics, Problems};
use super::language::Preset;
use super::schema::{Met, preset_schema};
use super::source::Sources;
use super::template::Templates;
use super::yaml;

include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// The names of the built-in presets, sorted.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|(name, _)| *name)
}

/// The text of a built-in preset.
pub fn builtin_text(name: &str) -> Option<&'static str> {
    EMBEDDED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Reads a built-in preset; `None` if there is none of that name.
pub(crate) fn builtin(name: &str) -> Option<Result<Preset, Diagnostics>> {
    Some(parse(&format!("<preset {name}>"), builtin_text(name)?))
}

/// What is wrong with the text of a preset file called `name`, if anything.
pub fn check(name: &str, text: &str) -> Result<(), Diagnostics> {
    parse(name, text).map(drop)
}

fn parse(name: &str, text: &str) -> Result<Preset, Diagnostics> {
    let mut sources = Sources::default();
    let mut problems = Problems::default();
    let file = sources.add(name.to_owned(), PathBuf::new(), text.to_owned());
    let node = yaml::parse(&sources, file, &mut problems);
    let preset = node.and_then(|mut node| {
        let templates = Templates::default();
        let schema = preset_schema();
        let mut checker = Checker {
            root: schema,
            met: &mut Met::default(),
            sources: &sources,
            templates: &templates,
            scope: None,
            problems: &mut problems,
        };
        let span = node.span;
        let good = checker.check(&mut node, schema, span);
        (good && problems.errors() == 0).then(|| serde_json::from_value::<Preset>(node.to_json()))
    });
    match preset {
        Some(Ok(preset)) => Ok(preset),
        Some(Err(error)) => Err(Diagnostics::bare("internal", format!("{name}: {error}"), None)),
        None => Err(problems.finish(&Arc::new(sources))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_preset_is_good() {
        for name in builtin_names() {
            let preset = builtin(name);
            assert!(
                matches!(preset, Some(Ok(_))),
                "{name}: {:?}",
                preset.and_then(Result::err).map(|e| e.plain())
            );
        }
    }
}
