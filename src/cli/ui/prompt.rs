//! Questions. They are asked on a terminal only; elsewhere the caller says which flag would have answered.

use std::io::{self, BufRead as _, Write as _};

use super::Ui;
use super::style::Role;

/// Asks a question that is answered with yes or no; no answer is no.
///
/// # Errors
/// What the system answers.
pub fn confirm(ui: &Ui, question: &str) -> io::Result<bool> {
    let answer = ask(ui, &format!("{question} [y/N] "))?;
    Ok(matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Asks for a word to be typed, for what cannot be undone.
///
/// # Errors
/// What the system answers.
pub fn type_word(ui: &Ui, question: &str, word: &str) -> io::Result<bool> {
    Ok(ask(ui, &format!("{question}\nType `{word}` to go on: "))? == word)
}

fn ask(ui: &Ui, question: &str) -> io::Result<String> {
    let mut err = io::stderr().lock();
    write!(err, "{}", ui.err.paint(Role::Title, question))?;
    err.flush()?;
    let mut answer = String::new();
    if io::stdin().lock().read_line(&mut answer)? == 0 {
        writeln!(err)?;
    }
    Ok(answer.trim().to_owned())
}
