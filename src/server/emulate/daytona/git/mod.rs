//! Git inside a sandbox, by the `git` of its image.

mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use self::words::{good, status, text};
use super::super::request::{parameter, parameters};
use super::toolbox::{Call, done};
use super::{answer as say, body, refuse};
use crate::model::with_causes;
use crate::provider::{CapturedOutput, GuestError, capture};

/// What of git's output is read.
const OUTPUT_LIMIT: usize = 64 << 20;
/// How long git may take.
const LIMIT: Duration = Duration::from_secs(3600);
/// Hands git what its environment holds: credentials are in no argument and on no disk.
const HELPER: &str = r#"credential.helper=!f() { echo "username=$POCKETENV_GIT_USER"; echo "password=$POCKETENV_GIT_PASSWORD"; }; f"#;

#[derive(Deserialize)]
struct Cloned {
    url: String,
    path: String,
    branch: Option<String>,
    commit_id: Option<String>,
    depth: Option<u32>,
    #[serde(default)]
    insecure_skip_tls: bool,
    #[serde(flatten)]
    access: Access,
}

/// Who asks a remote.
#[derive(Default, Deserialize)]
struct Access {
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize)]
struct Initialised {
    path: String,
    #[serde(default)]
    bare: bool,
    initial_branch: Option<String>,
}

#[derive(Deserialize)]
struct Files {
    path: String,
    files: Vec<String>,
}

#[derive(Deserialize)]
struct Committed {
    path: String,
    message: String,
    author: String,
    email: String,
    #[serde(default)]
    allow_empty: bool,
}

/// A branch to make or to delete, and one to check out.
#[derive(Deserialize)]
struct Branch {
    path: String,
    #[serde(alias = "branch")]
    name: String,
}

#[derive(Deserialize)]
struct Exchanged {
    path: String,
    branch: Option<String>,
    remote: Option<String>,
    #[serde(default)]
    set_upstream: bool,
    #[serde(flatten)]
    access: Access,
}

#[derive(Deserialize)]
struct Reset {
    path: String,
    mode: Option<String>,
    target: Option<String>,
    files: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Restored {
    path: String,
    files: Vec<String>,
    staged: Option<bool>,
    worktree: Option<bool>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Remote {
    path: String,
    name: String,
    url: String,
    #[serde(default)]
    fetch: bool,
    #[serde(default)]
    overwrite: bool,
}

#[derive(Deserialize)]
struct Setting {
    key: String,
    value: String,
    scope: Option<String>,
    path: Option<String>,
}

#[derive(Deserialize)]
struct Person {
    name: String,
    email: String,
    scope: Option<String>,
    path: Option<String>,
}

#[derive(Deserialize)]
struct Kept {
    username: String,
    password: String,
    host: Option<String>,
    protocol: Option<String>,
}

/// Answers a request for git.
pub(super) async fn answer(call: &Call<'_>, path: &[&str], request: Request) -> Result<Response, Response> {
    let method = request.method().as_str().to_owned();
    let query = parameters(&request);
    let at = || call.path(&query, "path");
    match (method.as_str(), path) {
        ("POST", ["clone"]) => call.clone_repository(body(request).await?).await,
        ("POST", ["init"]) => call.init(body(request).await?).await,
        ("GET", ["status"]) => call.status(&at()?).await,
        ("POST", ["add"]) => {
            let Files { path, files } = body(request).await?;
            call.files(&path, &["add"], &files).await
        }
        ("POST", ["commit"]) => call.commit(body(request).await?).await,
        ("GET", ["history"]) => call.history(&at()?).await,
        ("GET", ["branches"]) => call.branches(&at()?).await,
        ("POST", ["branches"]) => {
            let Branch { path, name } = body(request).await?;
            // As the vendor has it, a new branch is the one that is worked on.
            call.git(&path, &["checkout", "--quiet", "-b", word("name", &name)?, "--"]).await?;
            Ok(done(StatusCode::CREATED))
        }
        ("DELETE", ["branches"]) => {
            let Branch { path, name } = body(request).await?;
            call.git(&path, &["branch", "--quiet", "-D", "--", &name]).await?;
            Ok(done(StatusCode::NO_CONTENT))
        }
        ("POST", ["checkout"]) => {
            let Branch { path, name } = body(request).await?;
            call.git(&path, &["checkout", "--quiet", "--no-guess", word("branch", &name)?, "--"]).await?;
            Ok(done(StatusCode::OK))
        }
        ("POST", ["pull"]) => call.pull(body(request).await?).await,
        ("POST", ["push"]) => call.push(body(request).await?).await,
        ("POST", ["reset"]) => call.reset(body(request).await?).await,
        ("POST", ["restore"]) => call.restore(body(request).await?).await,
        ("GET", ["remotes"]) => call.remotes(&at()?).await,
        ("POST", ["remotes"]) => call.add_remote(body(request).await?).await,
        ("GET", ["config"]) => {
            let key = parameter(&query, "key").unwrap_or_default();
            call.setting(key, parameter(&query, "scope"), parameter(&query, "path")).await
        }
        ("POST", ["config"]) => {
            let Setting { key, value, scope, path } = body(request).await?;
            call.set(&[(&key, &value)], scope.as_deref(), path.as_deref()).await
        }
        ("POST", ["config", "user"]) => {
            let Person { name, email, scope, path } = body(request).await?;
            let both = [("user.name", name.as_str()), ("user.email", email.as_str())];
            call.set(&both, scope.as_deref(), path.as_deref()).await
        }
        ("POST", ["credentials"]) => call.keep(body(request).await?).await,
        _ => Err(refuse(
            501,
            format!("the emulator does not serve {method} /toolbox/ID/git/{}", path.join("/")),
        )),
    }
}

impl Call<'_> {
    /// Runs git in a directory, with `input`; however it ends.
    async fn ended(
        &self,
        path: &str,
        access: &Access,
        options: &[&str],
        arguments: &[&str],
        input: &[u8],
    ) -> Result<CapturedOutput, Response> {
        let path = self.user.path(path);
        let with_credentials = access.password.is_some() || access.username.is_some();
        let mut argv = vec!["git", "-C", &path, "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*"];
        if with_credentials {
            // No helper may be asked first, and none may keep what it is given.
            argv.extend(["-c", "credential.helper=", "-c", HELPER]);
        }
        argv.extend(options);
        argv.extend(arguments);
        let mut env = BTreeMap::from([
            ("HOME".to_owned(), self.user.home.clone()),
            ("LC_ALL".to_owned(), "C.UTF-8".to_owned()),
            ("LANGUAGE".to_owned(), String::new()),
            ("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned()),
        ]);
        if with_credentials {
            let said = |text: &Option<String>| text.clone().unwrap_or_default();
            env.insert("POCKETENV_GIT_USER".to_owned(), said(&access.username));
            env.insert("POCKETENV_GIT_PASSWORD".to_owned(), said(&access.password));
        }
        let mut command = self.command(&argv, Some("/"), env).await?;
        command.timeout = Some(LIMIT);
        match capture(&*self.guest, &command, input, OUTPUT_LIMIT).await {
            Ok(output) if output.truncated => Err(refuse(400, "git says too much")),
            Ok(output) => Ok(output),
            Err(GuestError::NotExecutable { .. }) => Err(refuse(400, "the image has no `git`")),
            Err(error) => Err(refuse(500, with_causes(&error))),
        }
    }

    /// What git prints, which has to end well.
    async fn git(&self, path: &str, arguments: &[&str]) -> Result<Vec<u8>, Response> {
        good(self.ended(path, &Access::default(), &[], arguments, &[]).await?)
    }

    /// Git with paths as its last arguments.
    async fn files(&self, path: &str, arguments: &[&str], files: &[String]) -> Result<Response, Response> {
        let mut all = arguments.to_vec();
        all.push("--");
        all.extend(files.iter().map(String::as_str));
        self.git(path, &all).await?;
        Ok(done(StatusCode::OK))
    }

    async fn clone_repository(&self, asked: Cloned) -> Result<Response, Response> {
        let Cloned { url, path, branch, commit_id, depth, insecure_skip_tls, access } = asked;
        let path = self.user.path(&path);
        let depth = depth.filter(|depth| *depth > 0).map(|depth| depth.to_string());
        let mut arguments = vec!["clone", "--quiet", "--single-branch"];
        if let Some(branch) = given(&branch) {
            arguments.extend(["--branch", branch]);
        }
        if let Some(depth) = &depth {
            arguments.extend(["--depth", depth]);
        }
        arguments.extend(["--", &url, &path]);
        let tls: &[&str] = if insecure_skip_tls { &["-c", "http.sslVerify=false"] } else { &[] };
        good(self.ended("/", &access, tls, &arguments, &[]).await?)?;
        if let Some(commit) = given(&commit_id) {
            let commit = word("commit_id", commit)?;
            self.git(&path, &["checkout", "--quiet", "--detach", commit, "--"]).await?;
        }
        Ok(done(StatusCode::OK))
    }

    async fn init(&self, asked: Initialised) -> Result<Response, Response> {
        let path = self.user.path(&asked.path);
        let mut arguments = vec!["init", "--quiet"];
        if asked.bare {
            arguments.push("--bare");
        }
        if let Some(branch) = given(&asked.initial_branch) {
            arguments.extend(["--initial-branch", branch]);
        }
        arguments.extend(["--", &path]);
        self.git("/", &arguments).await?;
        Ok(done(StatusCode::CREATED))
    }

    async fn status(&self, path: &str) -> Result<Response, Response> {
        let arguments = ["status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all"];
        Ok(say(&status(&self.git(path, &arguments).await?)))
    }

    async fn commit(&self, asked: Committed) -> Result<Response, Response> {
        let Committed { path, message, author, email, allow_empty } = asked;
        let (name, address) = (format!("user.name={author}"), format!("user.email={email}"));
        let mut arguments = vec!["commit", "--quiet", "--no-gpg-sign", "--cleanup=verbatim", "--file=-"];
        if allow_empty {
            arguments.push("--allow-empty");
        }
        let who = ["-c", name.as_str(), "-c", address.as_str()];
        good(self.ended(&path, &Access::default(), &who, &arguments, message.as_bytes()).await?)?;
        let hash = self.git(&path, &["rev-parse", "HEAD"]).await?;
        Ok(say(&json!({ "hash": text(&hash).trim_end() })))
    }

    async fn history(&self, path: &str) -> Result<Response, Response> {
        let printed = self.git(path, &["log", "-z", "--format=%H%x00%an%x00%ae%x00%aI%x00%B"]).await?;
        let fields: Vec<String> = printed.split(|byte| *byte == 0).map(text).collect();
        let commits: Vec<Value> = fields
            .as_chunks::<5>()
            .0
            .iter()
            .map(|[hash, author, email, timestamp, message]| {
                json!({ "hash": hash, "author": author, "email": email, "timestamp": timestamp, "message": message })
            })
            .collect();
        Ok(say(&commits))
    }

    async fn branches(&self, path: &str) -> Result<Response, Response> {
        let printed = self.git(path, &["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads"]).await?;
        let branches = text(&printed).lines().map(str::to_owned).collect::<Vec<_>>();
        Ok(say(&json!({ "branches": branches, "current": self.current(path).await? })))
    }

    /// The branch that is worked on; empty for none.
    async fn current(&self, path: &str) -> Result<String, Response> {
        Ok(text(&self.git(path, &["branch", "--show-current"]).await?).trim_end().to_owned())
    }

    /// The remote and the branch of an exchange.
    async fn sides<'a>(&self, asked: &'a Exchanged) -> Result<(&'a str, String), Response> {
        let branch = match given(&asked.branch) {
            Some(branch) => branch.to_owned(),
            None => self.current(&asked.path).await?,
        };
        if branch.is_empty() {
            return Err(refuse(404, "reference not found: HEAD is on no branch"));
        }
        Ok((word("remote", given(&asked.remote).unwrap_or("origin"))?, branch))
    }

    async fn pull(&self, asked: Exchanged) -> Result<Response, Response> {
        let (remote, branch) = self.sides(&asked).await?;
        let arguments = ["pull", "--quiet", "--ff-only", remote, word("branch", &branch)?];
        good(self.ended(&asked.path, &asked.access, &[], &arguments, &[]).await?)?;
        Ok(done(StatusCode::OK))
    }

    async fn push(&self, asked: Exchanged) -> Result<Response, Response> {
        let (remote, branch) = self.sides(&asked).await?;
        let both = format!("refs/heads/{branch}:refs/heads/{branch}");
        let mut arguments = vec!["push", "--quiet"];
        if asked.set_upstream {
            arguments.push("--set-upstream");
        }
        arguments.extend([remote, &both]);
        good(self.ended(&asked.path, &asked.access, &[], &arguments, &[]).await?)?;
        Ok(done(StatusCode::OK))
    }

    async fn reset(&self, asked: Reset) -> Result<Response, Response> {
        let target = word("target", given(&asked.target).unwrap_or("HEAD"))?;
        if let Some(files) = asked.files.as_deref().filter(|files| !files.is_empty()) {
            return self.files(&asked.path, &["reset", "--quiet", target], files).await;
        }
        let mode = match given(&asked.mode).unwrap_or("mixed") {
            "soft" => "--soft",
            "mixed" => "--mixed",
            "hard" => "--hard",
            "merge" => "--merge",
            "keep" => "--keep",
            other => {
                return Err(refuse(400, format!("mode `{other}` is none of soft, mixed, hard, merge, keep")));
            }
        };
        self.git(&asked.path, &["reset", "--quiet", mode, target, "--"]).await?;
        Ok(done(StatusCode::OK))
    }

    async fn restore(&self, asked: Restored) -> Result<Response, Response> {
        let mut arguments = vec!["restore".to_owned()];
        if asked.staged == Some(true) {
            arguments.push("--staged".to_owned());
        }
        if asked.worktree.unwrap_or(asked.staged != Some(true)) {
            arguments.push("--worktree".to_owned());
        }
        if let Some(source) = given(&asked.source) {
            arguments.push(format!("--source={source}"));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.files(&asked.path, &arguments, &asked.files).await
    }

    async fn remotes(&self, path: &str) -> Result<Response, Response> {
        let names = text(&self.git(path, &["remote"]).await?);
        let mut remotes = Vec::new();
        for name in names.lines() {
            let url = self.git(path, &["remote", "get-url", "--", name]).await?;
            remotes.push(json!({ "name": name, "url": text(&url).trim_end() }));
        }
        Ok(say(&json!({ "remotes": remotes })))
    }

    async fn add_remote(&self, asked: Remote) -> Result<Response, Response> {
        let Remote { path, name, url, fetch, overwrite } = asked;
        let known = text(&self.git(&path, &["remote"]).await?);
        let verb = if overwrite && known.lines().any(|known| known == name) { "set-url" } else { "add" };
        self.git(&path, &["remote", verb, "--", &name, &url]).await?;
        if fetch {
            self.git(&path, &["fetch", "--quiet", "--", &name]).await?;
        }
        Ok(done(StatusCode::CREATED))
    }

    async fn setting(
        &self,
        key: &str,
        scope: Option<&str>,
        path: Option<&str>,
    ) -> Result<Response, Response> {
        let (path, scope) = place(scope, path)?;
        let arguments = ["config", scope, "--get", word("key", key)?];
        let output = self.ended(path, &Access::default(), &[], &arguments, &[]).await?;
        let found = match output.status.code() {
            // It is not set.
            1 => None,
            _ => Some(text(&good(output)?).trim_end_matches('\n').to_owned()),
        };
        Ok(say(&json!({ "value": found })))
    }

    async fn set(
        &self,
        settings: &[(&str, &str)],
        scope: Option<&str>,
        path: Option<&str>,
    ) -> Result<Response, Response> {
        let (path, scope) = place(scope, path)?;
        for (key, value) in settings {
            self.git(path, &["config", scope, word("key", key)?, value]).await?;
        }
        Ok(done(StatusCode::OK))
    }

    /// Keeps credentials on the disk of the sandbox, as the vendor does when it is asked for it.
    async fn keep(&self, asked: Kept) -> Result<Response, Response> {
        let (host, protocol) =
            (given(&asked.host).unwrap_or("github.com"), given(&asked.protocol).unwrap_or("https"));
        let fields = [
            ("protocol", protocol),
            ("host", host),
            ("username", &asked.username),
            ("password", &asked.password),
        ];
        if fields.iter().any(|(_, value)| value.contains(['\n', '\0'])) {
            return Err(refuse(400, "credentials are of one line each"));
        }
        self.git("/", &["config", "--global", "credential.helper", "store"]).await?;
        let said: String = fields.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        good(self.ended("/", &Access::default(), &[], &["credential", "approve"], said.as_bytes()).await?)?;
        Ok(done(StatusCode::OK))
    }
}

/// What is there and not empty.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// A name that git cannot take for an option.
fn word<'a>(what: &str, name: &'a str) -> Result<&'a str, Response> {
    match name.is_empty() || name.starts_with('-') {
        true => Err(refuse(400, format!("{what} `{name}` is no name"))),
        false => Ok(name),
    }
}

/// Where a setting is, as a directory and an option.
fn place<'a>(scope: Option<&str>, path: Option<&'a str>) -> Result<(&'a str, &'static str), Response> {
    match scope.filter(|scope| !scope.is_empty()).unwrap_or("global") {
        "global" => Ok(("/", "--global")),
        "system" => Ok(("/", "--system")),
        "local" => {
            path.map(|path| (path, "--local")).ok_or_else(|| refuse(400, "path is required for `local`"))
        }
        other => Err(refuse(400, format!("scope `{other}` is none of global, local, system"))),
    }
}
