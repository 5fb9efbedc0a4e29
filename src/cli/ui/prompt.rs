//! Questions. They are asked on a terminal only; elsewhere the caller says which flag would have answered.

use std::io::{self, BufRead as _, Write as _};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio_util::sync::CancellationToken;

use super::Ui;
use super::style::Role;

/// Asks a question that is answered with yes or no; no answer is no.
///
/// # Errors
/// What the system answers.
pub fn confirm(ui: &Ui, cancel: &CancellationToken, question: &str) -> io::Result<bool> {
    let answer = ask(ui, cancel, &format!("{question} [y/N] "))?;
    Ok(matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Asks for a word to be typed, for what cannot be undone.
///
/// # Errors
/// What the system answers.
pub fn type_word(ui: &Ui, cancel: &CancellationToken, question: &str, word: &str) -> io::Result<bool> {
    Ok(ask(ui, cancel, &format!("{question}\nType `{word}` to go on: "))? == word)
}

fn ask(ui: &Ui, cancel: &CancellationToken, question: &str) -> io::Result<String> {
    let mut err = io::stderr().lock();
    write!(err, "{}", ui.err.paint(Role::Title, question))?;
    err.flush()?;
    let mut answer = String::new();
    // A terminal gives whole lines: what can be read is an answer, and until then Ctrl-C is one.
    if !readable(cancel)? || io::stdin().lock().read_line(&mut answer)? == 0 {
        writeln!(err)?;
    }
    Ok(answer.trim().to_owned())
}

/// Waits until stdin can be read; `false` if it was called off before.
fn readable(cancel: &CancellationToken) -> io::Result<bool> {
    const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let stdin = io::stdin();
    while !cancel.is_cancelled() {
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
