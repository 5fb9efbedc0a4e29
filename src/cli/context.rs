//! What every verb has at hand: the flags with their defaults, the program as a library, and how to print.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use super::Process;
use super::args::{GlobalArgs, ProgressHow};
use super::error::CliError;
use super::ui::exit::Exit;
use super::ui::{Ui, UiOptions};
use crate::app::{App, Directories, Environment, Error, Project, Selection, SystemClock, UuidIds};
use crate::manifest;
use crate::model::Timestamp;

/// What every verb has at hand.
pub struct Context {
    /// The program as a library.
    pub app: App,
    /// How to print.
    pub ui: Ui,
    selection: Selection,
}

impl Context {
    /// Lays the defaults of the environment under the flags.
    ///
    /// # Errors
    /// A default that makes no sense, with what is needed to say so.
    pub fn new(process: Process, global: GlobalArgs) -> Result<Self, (Ui, CliError)> {
        let set = |name: &str| process.vars.get(name).filter(|value| !value.is_empty()).cloned();
        let mut options = UiOptions {
            form: global.output.unwrap_or_default(),
            color: global.color,
            progress: global.progress.unwrap_or_default(),
            quiet: global.quiet,
            no_color: set("NO_COLOR").is_some(),
            ci: set("CI").is_some(),
            dumb: set("TERM").is_some_and(|term| term == "dumb"),
        };
        if let (None, Some(how)) = (global.progress, set("POCKETENV_PROGRESS")) {
            match <ProgressHow as clap::ValueEnum>::from_str(&how, true) {
                Ok(how) => options.progress = how,
                Err(_) => {
                    let message =
                        format!("POCKETENV_PROGRESS is `{how}`; expected auto, tty, plain, json or quiet");
                    return Err((Ui::new(options), CliError::usage(message)));
                }
            }
        }
        let selection = Selection {
            files: global.file,
            project: global.project.or_else(|| set("POCKETENV_PROJECT")),
            profile: global.profile.or_else(|| set("POCKETENV_PROFILE")),
            vars: global.var.into_iter().map(|pair| (pair.key, pair.value)).collect(),
            env_files: global.env_file,
            provider: global.provider,
            confinement: None,
            drift: None,
        };
        Ok(Self { app: App::new(environment(process)), ui: Ui::new(options), selection })
    }

    /// Which project, as the flags say.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Turns to another project.
    pub fn select(&mut self, selection: Selection) {
        self.selection = selection;
    }

    /// The projects that the flags mean, with directories replaced by what is in them: a directory with a `pocketenv.yaml` is that project,
    /// any other is every manifest in it, each a project of its own.
    ///
    /// # Errors
    /// A directory without a manifest, or one of many projects next to other files.
    pub fn selections(&self) -> Result<Vec<Selection>, CliError> {
        let mut files = Vec::new();
        for file in &self.selection.files {
            if !file.is_dir() {
                files.push(file.clone());
                continue;
            }
            let own = manifest::discover(file, &BTreeMap::new()).unwrap_or_default();
            if own.first().and_then(|path| path.parent()) == Some(file) {
                files.extend(own);
                continue;
            }
            let all = manifest::manifests_in(file).map_err(CliError::Manifest)?;
            match (self.selection.files.len(), all.len()) {
                (_, 1) => files.extend(all),
                (1, _) => {
                    let one = |path| Selection { files: vec![path], ..self.selection.clone() };
                    return Ok(all.into_iter().map(one).collect());
                }
                _ => {
                    let text = format!(
                        "{} holds several projects, which cannot be merged with other files",
                        file.display()
                    );
                    return Err(CliError::usage(text));
                }
            }
        }
        Ok(vec![Selection { files, ..self.selection.clone() }])
    }

    /// Opens the project that the flags say.
    ///
    /// # Errors
    /// What is wrong with its manifest, its store or its providers.
    pub async fn open(&self) -> Result<Project<'_>, Error> {
        self.app.open(&self.selection).await
    }

    /// The same for getting at what there is, without looking into what the manifest declares.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub async fn find(&self) -> Result<Project<'_>, Error> {
        self.app.find(&self.selection).await
    }

    /// A variable of the environment that is set to something.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.app.environment().vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.app.environment().clock.now()
    }

    /// Runs a use case to its end.
    ///
    /// # Errors
    /// What the use case answers, or the system if no thread can be started.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        run_on(tokio::runtime::Builder::new_multi_thread(), work)
    }

    /// The same on this thread alone, for work that does one thing at a time or only looks: no thread is started that has nothing to do, and who
    /// waits for thousands of answers is not woken by another thread for each.
    ///
    /// # Errors
    /// As [`Context::block_on`].
    pub fn block_on_one<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        run_on(tokio::runtime::Builder::new_current_thread(), work)
    }
}

fn run_on<T>(
    mut builder: tokio::runtime::Builder,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Exit::Failed, format!("starting: {error}")))?;
    let result = runtime.block_on(work);
    // A read of a terminal cannot be called off; it must not hold us up.
    runtime.shutdown_background();
    result
}

fn environment(process: Process) -> Environment {
    let Process { vars, cwd, executable, .. } = process;
    let set = |name: &str| vars.get(name).filter(|value| !value.is_empty());
    let home = set("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let uid = rustix::process::getuid().as_raw();
    let user = match set("USER").or_else(|| set("LOGNAME")) {
        Some(user) => user.clone(),
        None if uid == 0 => "root".to_owned(),
        None => format!("uid {uid}"),
    };
    let host = rustix::system::uname();
    Environment {
        directories: Directories::resolve(&vars, home.as_deref(), uid),
        actor: format!("{user}@{}", host.nodename().to_string_lossy()),
        clock: Arc::new(SystemClock),
        ids: Arc::new(UuidIds),
        home,
        cwd,
        executable,
        vars,
    }
}

/// The names of a map, for suggestions.
pub fn names<V>(map: &BTreeMap<String, V>) -> impl Iterator<Item = &str> {
    map.keys().map(String::as_str)
}
