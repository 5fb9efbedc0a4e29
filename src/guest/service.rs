//! Supervised services: started, stopped and removed one by one. Order and dependencies are the planner's.
//!
//! A supervisor, one `sh` a service, stays behind in the sandbox and outlives this process.

use super::script::{Env, SHORT, Script, run};
use crate::model::{RestartPolicy, ServiceSpec};
use crate::provider::{Guest, GuestError};

macro_rules! service_script {
    ($name:literal) => {
        Script {
            name: concat!("pocketenv-", $name),
            text: concat!(
                include_str!("sh/prelude.sh"),
                include_str!("sh/process.sh"),
                include_str!("sh/service.sh"),
                include_str!(concat!("sh/", $name, ".sh"))
            ),
        }
    };
}

/// The scripts that stay in the sandbox.
const SUPERVISE: &str =
    concat!(include_str!("sh/process.sh"), include_str!("sh/service.sh"), include_str!("sh/supervise.sh"));
const LAUNCH: &str = concat!(include_str!("sh/process.sh"), include_str!("sh/launch.sh"));
const PUMP: &str = concat!(include_str!("sh/process.sh"), include_str!("sh/pump.sh"));

/// What the sandbox gives to a service that the service does not say itself.
#[derive(Clone, Copy, Default)]
pub struct ServiceDefaults<'a> {
    /// Who runs it.
    pub user: Option<&'a str>,
    /// Its working directory.
    pub working_dir: Option<&'a str>,
}

/// Starts a service, with `env` (the sandbox's, secrets included) and over it the definition's own. One that already runs with the same digest
/// is left alone; with another digest it is stopped first. Comes back when the supervisor has taken over: see [`wait_started`](super::wait_started).
///
/// # Errors
/// [`GuestError::Unsupported`] for a name, signal or command that cannot be; [`GuestError::Failed`] if the supervisor does not start.
pub async fn start_service(
    guest: &dyn Guest,
    name: &str,
    spec: &ServiceSpec,
    digest: &str,
    env: &Env,
    defaults: ServiceDefaults<'_>,
) -> Result<(), GuestError> {
    check_name(name)?;
    super::script::one_line("the digest", digest)?;
    if spec.command.is_empty() {
        return Err(GuestError::Unsupported(format!(
            "service {name} has no command, and neither has the image of the sandbox"
        )));
    }
    let signal = spec.stop_signal.strip_prefix("SIG").unwrap_or(&spec.stop_signal);
    if signal.is_empty() || !signal.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+') {
        return Err(GuestError::Unsupported(format!(
            "service {name}: {:?} is not a signal",
            spec.stop_signal
        )));
    }
    let (policy, max) = match spec.restart {
        RestartPolicy::Always => ("always", "-".to_owned()),
        RestartPolicy::OnFailure { max } => ("on-failure", max.map_or("-".to_owned(), |max| max.to_string())),
        RestartPolicy::Never => ("never", "-".to_owned()),
    };
    let user = spec.user.as_deref().or(defaults.user);
    let stop_ms = spec.stop_timeout.as_millis();
    let arguments = |stage: &str, dir: &str, logs: &str| {
        let mut arguments = vec![
            stage.to_owned(),
            name.to_owned(),
            digest.to_owned(),
            signal.to_owned(),
            stop_ms.to_string(),
            user.unwrap_or_default().to_owned(),
            dir.to_owned(),
            logs.to_owned(),
            policy.to_owned(),
            max.clone(),
            spec.log_max_size.as_bytes().to_string(),
            spec.log_max_files.to_string(),
            SUPERVISE.to_owned(),
            LAUNCH.to_owned(),
            PUMP.to_owned(),
        ];
        arguments.extend(spec.command.iter().cloned());
        arguments
    };
    let what = format!("starting service {name}");
    let limit = SHORT + std::time::Duration::from(spec.stop_timeout);
    let (mut dir, mut logs) = (String::new(), String::new());
    if user.is_some() {
        let mut prepare = service_script!("start").command(arguments("prepare", "", ""));
        prepare.timeout = Some(limit);
        let output = run(guest, &what, &prepare, 0).await?;
        let answer = String::from_utf8_lossy(&output.stdout);
        match answer.trim_end().split('\t').collect::<Vec<_>>()[..] {
            ["same"] => return Ok(()),
            ["prepared", the_dir, the_logs] => (dir, logs) = (the_dir.to_owned(), the_logs.to_owned()),
            _ => return Err(GuestError::Protocol { what, message: format!("{answer:?}") }),
        }
    }
    let stage = if user.is_some() { "launch" } else { "all" };
    let mut command = service_script!("start").command(arguments(stage, &dir, &logs));
    let (env, surroundings) = surroundings(spec, env, defaults);
    command.env = env;
    command.cwd = surroundings.working_dir.map(str::to_owned);
    command.user = user.map(str::to_owned);
    command.timeout = Some(limit);
    run(guest, &what, &command, 0).await.map(drop)
}

/// Stops a service: its signal to the whole process group, its time to end, then KILL. One that does not run is fine.
///
/// # Errors
/// [`GuestError::Failed`] if its process cannot be ended.
pub async fn stop_service(guest: &dyn Guest, name: &str) -> Result<(), GuestError> {
    stop(guest, name, "stopping", &[name]).await
}

/// Stops a service and starts it again from the same definition, whatever it does now; `false` if it was never started. Arguments are as for
/// [`start_service`].
///
/// # Errors
/// As [`stop_service`] and [`start_service`].
pub async fn restart_service(
    guest: &dyn Guest,
    name: &str,
    spec: &ServiceSpec,
    env: &Env,
    defaults: ServiceDefaults<'_>,
) -> Result<bool, GuestError> {
    check_name(name)?;
    let mut command = service_script!("digest").command([name]);
    command.timeout = Some(SHORT);
    let output = run(guest, &format!("looking at service {name}"), &command, 0).await?;
    let digest = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if digest.is_empty() {
        return Ok(false);
    }
    stop_service(guest, name).await?;
    start_service(guest, name, spec, &digest, env, defaults).await?;
    Ok(true)
}

/// Stops a service and removes its state and logs. One that does not exist is fine.
///
/// # Errors
/// As [`stop_service`].
pub async fn remove_service(guest: &dyn Guest, name: &str) -> Result<(), GuestError> {
    stop(guest, name, "removing", &[name, "remove"]).await
}

async fn stop(guest: &dyn Guest, name: &str, verb: &str, arguments: &[&str]) -> Result<(), GuestError> {
    check_name(name)?;
    let command = service_script!("stop").command(arguments.iter().copied());
    // No limit of ours: the service's own, kept inside, is one.
    run(guest, &format!("{verb} service {name}"), &command, 0).await.map(drop)
}

/// What the service's process, and whoever asks for its health, sees: the sandbox's values with the service's own over them.
pub(super) fn surroundings<'a>(
    spec: &'a ServiceSpec,
    env: &Env,
    defaults: ServiceDefaults<'a>,
) -> (Env, ServiceDefaults<'a>) {
    let mut env = env.clone();
    env.extend(spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let user = spec.user.as_deref().or(defaults.user);
    (env, ServiceDefaults { user, working_dir: spec.working_dir.as_deref().or(defaults.working_dir) })
}

/// A service's name is also a directory's inside.
pub(super) fn check_name(name: &str) -> Result<(), GuestError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.starts_with(['.', '-']) || name.len() > 128 || !name.bytes().all(fine) {
        return Err(GuestError::Unsupported(format!("{name:?} cannot be the name of a service")));
    }
    Ok(())
}
