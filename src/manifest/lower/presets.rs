//! The presets that a sandbox uses, with their variables.

use std::collections::BTreeMap;

use super::Lowering;
use crate::manifest::language::{self, PresetUse};
use crate::manifest::presets;
use crate::model::*;

impl Lowering<'_> {
    pub(super) fn presets(&mut self, uses: &[PresetUse]) -> Vec<PresetSpec> {
        let mut all: Vec<PresetSpec> = Vec::new();
        for (i, used) in uses.iter().enumerate() {
            let index = i.to_string();
            let name = &used.name.0;
            if all.iter().any(|p| p.name == *name) {
                let problem = self.error(
                    "duplicate",
                    &["presets", &index, "name"],
                    format!("the preset `{name}` stands here twice"),
                );
                self.push(problem);
                continue;
            }
            let declared = self.declared;
            let preset = match declared.presets.get(name) {
                Some(Some(preset)) => preset.clone(),
                // It is there and reported.
                Some(None) => continue,
                None => match presets::builtin(name) {
                    Some(Ok(preset)) => preset,
                    Some(Err(error)) => {
                        let problem = self.error(
                            "internal",
                            &["presets", &index, "name"],
                            format!("the built-in preset `{name}` is broken: {error}"),
                        );
                        self.push(problem);
                        continue;
                    }
                    None => {
                        let known: Vec<String> = declared
                            .presets
                            .keys()
                            .cloned()
                            .chain(presets::builtin_names().map(str::to_owned))
                            .collect();
                        self.unknown(
                            &["presets", &index, "name"],
                            "preset",
                            name,
                            known.iter().map(String::as_str),
                        );
                        continue;
                    }
                },
            };
            for variable in used.vars.keys() {
                if !preset.vars.contains_key(variable) {
                    let path = ["presets", index.as_str(), "vars", variable];
                    self.unknown(&path, "preset variable", variable, preset.vars.keys().map(String::as_str));
                }
            }
            all.push(preset_spec(name, &preset, &used.vars));
        }
        all
    }
}

fn preset_spec(name: &str, preset: &language::Preset, vars: &BTreeMap<String, language::Text>) -> PresetSpec {
    let text = |t: &language::Text| t.0.clone();
    let steps = preset
        .steps
        .iter()
        .enumerate()
        .map(|(i, step)| {
            let layers = [&preset.vars, vars, &step.env];
            PresetStep {
                name: step.name.as_ref().map_or_else(|| format!("step-{}", i + 1), text),
                only_if: step.only_if.as_ref().map(text),
                unless: step.unless.as_ref().map(text),
                run: text(&step.run),
                shell: step.shell.as_ref().map_or_else(|| "sh".to_owned(), text),
                user: step.user.as_ref().map(|u| u.0.clone()),
                env: layers.into_iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect(),
                timeout: step.timeout.unwrap_or(Duration::from_secs(600)),
                retries: step.retries.unwrap_or(0),
                continue_on_error: step.continue_on_error.unwrap_or(false),
            }
        })
        .collect();
    PresetSpec { name: name.to_owned(), steps }
}
