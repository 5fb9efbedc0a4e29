//! What people and programs see: data on stdout, people on stderr.

pub mod exit;
pub mod hint;
pub mod progress;
pub mod prompt;
pub mod style;
pub mod table;
pub mod time;
pub mod view;

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use serde_json::Value;

use super::args::{ColorWhen, OutputForm, ProgressHow};
use style::{Paint, Role};
use table::{Table, printable_lines};

use crate::manifest::Diagnostics;

/// The version of every JSON form printed; it grows when fields are added.
pub const FORMAT_VERSION: &str = "1.0";

/// How this run prints.
#[derive(Clone, Debug)]
pub struct Ui {
    /// The form of data.
    pub form: OutputForm,
    /// How progress is shown; never `Auto`.
    pub progress: ProgressHow,
    /// Colours of stdout.
    pub out: Paint,
    /// Colours of stderr.
    pub err: Paint,
    /// Somebody can answer: stdin and stderr are terminals and no `CI` is set.
    pub interactive: bool,
    quiet: bool,
    width: Option<u16>,
}

/// What the look of a run depends on, apart from the terminals.
#[derive(Clone, Copy, Debug, Default)]
pub struct UiOptions {
    /// `--output`.
    pub form: OutputForm,
    /// `--color`.
    pub color: ColorWhen,
    /// `--progress` or `POCKETENV_PROGRESS`.
    pub progress: ProgressHow,
    /// `--quiet`.
    pub quiet: bool,
    /// `NO_COLOR` is set to something.
    pub no_color: bool,
    /// `CI` is set to something.
    pub ci: bool,
    /// `TERM` is `dumb`.
    pub dumb: bool,
}

impl Ui {
    /// Looks at the terminals and decides.
    pub fn new(options: UiOptions) -> Self {
        let color = |terminal: bool| match options.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => terminal && !options.no_color && !options.dumb,
        };
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let progress = match options.progress {
            _ if options.quiet => ProgressHow::Quiet,
            ProgressHow::Auto if err && !options.ci && !options.dumb => ProgressHow::Tty,
            ProgressHow::Auto => ProgressHow::Plain,
            ProgressHow::Tty if !err => ProgressHow::Plain,
            asked => asked,
        };
        Self {
            form: options.form,
            progress,
            out: Paint(color(out)),
            err: Paint(color(err)),
            interactive: io::stdin().is_terminal() && err && !options.ci,
            quiet: options.quiet,
            width: if out { terminal_size(&io::stdout()).map(|(_, columns)| columns) } else { None },
        }
    }

    /// The same, telling people only what they must look at.
    pub fn hushed(&self) -> Self {
        Self { quiet: true, ..self.clone() }
    }

    /// Whether a view may fill the terminal: it is one in every direction, and nothing else was asked for.
    pub fn fills(&self) -> bool {
        let people = matches!(self.form, OutputForm::Table | OutputForm::Wide);
        people && self.progress == ProgressHow::Tty && self.interactive && io::stdout().is_terminal()
    }

    /// Writes data to stdout as it is.
    ///
    /// # Errors
    /// What the system answers; a closed pipe is one of them and ends the program quietly.
    pub fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes a line of data to stdout.
    ///
    /// # Errors
    /// As [`Ui::write`].
    pub fn line(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    /// Prints in the form that was asked for: a value as JSON or YAML, names one a line, or text that `text` makes (`true` for wide).
    ///
    /// # Errors
    /// As [`Ui::write`].
    pub fn show(
        &self,
        value: &impl Serialize,
        names: impl FnOnce() -> Vec<String>,
        text: impl FnOnce(bool) -> String,
    ) -> io::Result<()> {
        match self.form {
            OutputForm::Json | OutputForm::Yaml => self.value(value),
            OutputForm::Name => self.write(&lines(names())),
            OutputForm::Table => self.write(&text(false)),
            OutputForm::Wide => self.write(&text(true)),
        }
    }

    /// Prints an object as YAML if that was asked for, as JSON otherwise, with its `format_version`.
    ///
    /// # Errors
    /// As [`Ui::write`].
    pub fn value(&self, value: &impl Serialize) -> io::Result<()> {
        let value = versioned(value)?;
        if self.form == OutputForm::Yaml {
            let text = serde_saphyr::to_string(&value).map_err(io::Error::other)?;
            return self.write(if text.ends_with('\n') { text } else { text + "\n" }.as_str());
        }
        self.line(&serde_json::to_string_pretty(&value)?)
    }

    /// Prints one object of a stream on one line.
    ///
    /// # Errors
    /// As [`Ui::write`].
    pub fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        let mut value = serde_json::to_value(value)?;
        time::readable(&mut value);
        self.line(&serde_json::to_string(&value)?)
    }

    /// The first line of every stream of JSON Lines.
    ///
    /// # Errors
    /// As [`Ui::write`].
    pub fn json_stream_header(&self) -> io::Result<()> {
        self.json_line(&serde_json::json!({ "type": "stream", "format_version": FORMAT_VERSION }))
    }

    /// Renders a table at the width of the terminal.
    pub fn table(&self, table: &Table) -> String {
        table.render(self.width, self.out)
    }

    /// Tells people something, unless `--quiet`.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.tell(text);
        }
    }

    /// Tells people about something to look at, even if quiet.
    pub fn warn(&self, text: &str) {
        self.tell(&format!("{} {}", self.err.paint(Role::Warning, "warning:"), printable_lines(text)));
    }

    /// Tells people what to do next, unless `--quiet`.
    pub fn hint(&self, text: &str) {
        self.say(&format!("{} {}", self.err.paint(Role::Hint, "hint:"), printable_lines(text)));
    }

    /// Tells people why it ended. What a sandbox had to say may be part of it, so control characters are taken out.
    pub fn error(&self, text: &str) {
        self.tell(&format!("{} {}", self.err.paint(Role::Error, "error:"), printable_lines(text)));
    }

    /// Shows what is wrong with a manifest, with snippets.
    pub fn diagnostics(&self, diagnostics: &Diagnostics) {
        const WIDTH: u16 = 100; // Where there is no terminal to ask.
        let width = terminal_size(&io::stderr()).map_or(WIDTH, |(_, columns)| columns);
        let text = diagnostics.graphical(self.err.0, width.into());
        self.tell(text.trim_end());
    }

    fn tell(&self, text: &str) {
        // There is nobody to tell that nobody can be told.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Whether data is for programs.
    pub fn is_machine(&self) -> bool {
        matches!(self.form, OutputForm::Json | OutputForm::Yaml)
    }
}

/// The size of a terminal in lines and characters; `None` if it is none.
pub fn terminal_size(stream: &impl std::os::fd::AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// The lines of a list, each ended.
pub fn lines(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect()
}

/// The value with `format_version` as its first field and times that people can read.
fn versioned(value: &impl Serialize) -> io::Result<Value> {
    let mut value = serde_json::to_value(value)?;
    time::readable(&mut value);
    if let Value::Object(fields) = &mut value
        && !fields.contains_key("format_version")
    {
        fields.shift_insert(0, "format_version".to_owned(), FORMAT_VERSION.into());
    }
    Ok(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_object_states_its_version_once() {
        let value = versioned(&serde_json::json!({ "a": 1 })).unwrap();
        assert_eq!(value.to_string(), r#"{"format_version":"1.0","a":1}"#);
        let value = versioned(&serde_json::json!({ "a": 1, "format_version": "2.0" })).unwrap();
        assert_eq!(value.to_string(), r#"{"a":1,"format_version":"2.0"}"#);
    }
}
