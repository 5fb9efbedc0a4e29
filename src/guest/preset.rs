//! Steps of presets: run once, remembered by the hash of their content.

use super::script::{Env, SHORT, Tail, run, script};
use crate::model::PresetStep;
use crate::provider::{ExecIo, ExitStatus, Guest, GuestError, Input, Output, Sink};

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Its script ran.
    Ran,
    /// Its condition said that it need not.
    Skipped,
    /// It failed and was allowed to: the exit status and its last output.
    FailedAllowed(String),
}

/// The longest script: the kernel refuses a longer argument.
const SCRIPT_LIMIT: usize = 96 * 1024;
/// What of a step's output an error carries.
const OUTPUT_LIMIT: usize = 4 * 1024;

/// Runs a step of preset `preset` with `env` (the sandbox's) and the step's own over it, and remembers that it is done. `default_user` runs it if the
/// step does not say who. `on_output` sees what its scripts write as it comes. `if`, `unless` and `run` are one script each; a shell without
/// arguments gets `-e` for `run`.
///
/// # Errors
/// [`GuestError::Failed`] or [`GuestError::TimedOut`] after the last attempt, with the preset's and the step's name and the last output;
/// [`GuestError::Unsupported`] for a script over 96 KiB.
pub async fn run_step(
    guest: &dyn Guest,
    preset: &str,
    step: &PresetStep,
    env: &Env,
    default_user: Option<&str>,
    on_output: &mut (dyn FnMut(&str) + Send),
) -> Result<StepOutcome, GuestError> {
    let what = format!("step {:?} of preset {preset}", step.name);
    let (only_if, unless) =
        (step.only_if.as_deref().unwrap_or_default(), step.unless.as_deref().unwrap_or_default());
    if [only_if, unless, &step.run].iter().any(|text| text.len() > SCRIPT_LIMIT) {
        return Err(GuestError::Unsupported(format!("{what}: a script is longer than 96 KiB")));
    }
    let mut command = script!("step").command([only_if, unless, &step.run]);
    command.argv.extend(step.shell.split_whitespace().map(str::to_owned));
    command.env = env.clone();
    command.env.extend(step.env.clone());
    command.cwd = None;
    command.user = step.user.as_deref().or(default_user).map(str::to_owned);
    command.timeout = Some(step.timeout.into());

    let mut pause = std::time::Duration::from_secs(1);
    let mut attempt = 0;
    let outcome = loop {
        let failure = match attempt_once(guest, &what, &command, on_output).await {
            Ok(outcome) => break outcome,
            Err(error @ (GuestError::Failed { .. } | GuestError::TimedOut { .. })) => error,
            // Not the step's doing.
            Err(error) => return Err(error),
        };
        if attempt == step.retries {
            if step.continue_on_error {
                break StepOutcome::FailedAllowed(failure.to_string());
            }
            return Err(failure);
        }
        attempt += 1;
        on_output(&format!("{what}: attempt {attempt} failed, trying again\n"));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(std::time::Duration::from_secs(30));
    };
    let word = if matches!(outcome, StepOutcome::FailedAllowed(_)) { "failed" } else { "done" };
    let mut remember = script!("steps").command(["remember", &step.id(), word]);
    remember.timeout = Some(SHORT);
    run(guest, &what, &remember, 0).await?;
    Ok(outcome)
}

/// Forgets that steps are done, by [`PresetStep::id`]. What they did stays.
///
/// # Errors
/// Whatever running a command gives.
pub async fn forget_steps(guest: &dyn Guest, ids: &[String]) -> Result<(), GuestError> {
    for id in ids {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(GuestError::Unsupported(format!("{id:?} is not the id of a step")));
        }
    }
    for some in ids.chunks(500) {
        let mut command =
            script!("steps").command(["forget"].into_iter().chain(some.iter().map(String::as_str)));
        command.timeout = Some(SHORT);
        run(guest, "forgetting preset steps", &command, 0).await?;
    }
    Ok(())
}

async fn attempt_once(
    guest: &dyn Guest,
    what: &str,
    command: &crate::provider::Command,
    on_output: &mut (dyn FnMut(&str) + Send),
) -> Result<StepOutcome, GuestError> {
    let mut output = Lines::new(on_output);
    let mut verdict = Tail::new(1024);
    let io = ExecIo {
        stdin: Input::Null,
        stdout: Output::Writer(&mut Sink(|data: &[u8]| output.push(data))),
        stderr: Output::Writer(&mut Sink(|data: &[u8]| verdict.push(data))),
    };
    let status = match guest.exec(command, io).await {
        Err(GuestError::TimedOut { limit, .. }) => {
            return Err(GuestError::TimedOut { program: what.to_owned(), limit });
        }
        other => other?,
    };
    let output = output.finish();
    let verdict = verdict.into_bytes();
    let verdict = String::from_utf8_lossy(&verdict);
    let failed = |status| GuestError::Failed { what: what.to_owned(), status, output: output.clone() };
    match verdict.trim_end() {
        "skipped if" | "skipped unless" => Ok(StepOutcome::Skipped),
        text => match text.strip_prefix("ran ").and_then(|code| code.parse().ok()) {
            Some(0) => Ok(StepOutcome::Ran),
            Some(code) => Err(failed(ExitStatus::Code(code))),
            None if !status.success() => Err(failed(status)),
            None => Err(GuestError::Protocol { what: what.to_owned(), message: format!("{verdict:?}") }),
        },
    }
}

/// Gives output on as text, never cutting a character, and keeps its end.
struct Lines<'a> {
    on_output: &'a mut (dyn FnMut(&str) + Send),
    pending: Vec<u8>,
    tail: Tail,
}

impl<'a> Lines<'a> {
    fn new(on_output: &'a mut (dyn FnMut(&str) + Send)) -> Self {
        Self { on_output, pending: Vec::new(), tail: Tail::new(OUTPUT_LIMIT) }
    }

    fn push(&mut self, data: &[u8]) {
        self.tail.push(data);
        self.pending.extend_from_slice(data);
        let whole = match std::str::from_utf8(&self.pending) {
            Ok(text) => text.len(),
            // An unfinished character waits for its rest.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.pending.len(),
        };
        if whole > 0 {
            let text: Vec<u8> = self.pending.drain(..whole).collect();
            (self.on_output)(&String::from_utf8_lossy(&text));
        }
    }

    fn finish(self) -> String {
        if !self.pending.is_empty() {
            (self.on_output)(&String::from_utf8_lossy(&self.pending));
        }
        String::from_utf8_lossy(&self.tail.into_bytes()).into_owned()
    }
}
