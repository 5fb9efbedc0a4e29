//! Questions. They are asked on a terminal only; elsewhere the caller says which flag would have answered.

use std::io::{self, BufRead as _, Write as _};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use secrecy::zeroize::Zeroizing;
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

/// Asks for something that is not shown while it is typed.
///
/// # Errors
/// What the system answers; [`io::ErrorKind::Interrupted`] if it was called off with Ctrl-C.
pub fn hidden(ui: &Ui, question: &str, answer: &mut String) -> io::Result<()> {
    let mut err = io::stderr().lock();
    write!(err, "{} ", ui.err.paint(Role::Title, question))?;
    err.flush()?;
    let typed = {
        let _unseen = Unseen::enter()?;
        type_unseen()
    };
    writeln!(err)?;
    let typed = typed?;
    let text =
        std::str::from_utf8(&typed).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    answer.push_str(text);
    Ok(())
}

/// Reads one line key by key: signals of the terminal are off, so that it is put back on every way out.
fn type_unseen() -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for any key, so that no copy of a part is left behind by growing.
    let mut typed = Zeroizing::new(Vec::with_capacity(64 << 10));
    let stdin = io::stdin();
    let mut key = [0];
    loop {
        match rustix::io::read(stdin.as_fd(), &mut key) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(typed),
            Ok(_) => match key[0] {
                b'\r' | b'\n' | 0x04 => return Ok(typed),
                0x03 => return Err(io::ErrorKind::Interrupted.into()),
                0x08 | 0x7f => {
                    // A whole character, however many bytes it has.
                    while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                }
                // Ctrl-U.
                0x15 => typed.clear(),
                byte if typed.len() < typed.capacity() => typed.push(byte),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is too long to be typed")),
            },
        }
    }
}

/// The terminal without echo, until this is dropped.
struct Unseen(Termios);

impl Unseen {
    fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut unseen = before.clone();
        unseen.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        termios::tcsetattr(stdin.as_fd(), OptionalActions::Drain, &unseen)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // There is nothing left to do if it fails.
        let _ = termios::tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.0);
    }
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
