//! Colours, by what they mean.

use clap::builder::styling::{AnsiColor, Style};

use crate::model::{Health, Sync};
use crate::plan::Verdict;
use crate::plan::report::LineKind;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(pub bool);

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// As it should be.
    Good,
    /// On its way, or changed.
    Active,
    /// To look at.
    Warning,
    /// Wrong, or lost.
    Error,
    /// What to do next.
    Hint,
    /// Less important.
    Dim,
    /// A title.
    Title,
    /// Nothing special.
    Plain,
}

impl Role {
    fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Active => AnsiColor::Cyan.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default(),
            Self::Error => AnsiColor::Red.on_default().bold(),
            Self::Hint => AnsiColor::Cyan.on_default().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Title => Style::new().bold(),
            Self::Plain => Style::new(),
        }
    }
}

impl Paint {
    /// The text in the colour of its role.
    pub fn paint(self, role: Role, text: &str) -> String {
        if self.0 && role != Role::Plain {
            let style = role.style();
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// A text in the `index`th of the colours that tell sources of lines apart.
    pub fn tag(self, index: usize, text: &str) -> String {
        const COLORS: [AnsiColor; 6] = [
            AnsiColor::Cyan,
            AnsiColor::Yellow,
            AnsiColor::Green,
            AnsiColor::Magenta,
            AnsiColor::Blue,
            AnsiColor::BrightRed,
        ];
        if !self.0 {
            return text.to_owned();
        }
        let style = COLORS[index % COLORS.len()].on_default();
        format!("{style}{text}{style:#}")
    }
}

/// The role of a line of a plan.
pub fn of_plan_line(kind: LineKind) -> Role {
    match kind {
        LineKind::Change(Verdict::Create | Verdict::Adopt | Verdict::Start) => Role::Good,
        LineKind::Change(Verdict::Live | Verdict::Restart | Verdict::Stop | Verdict::Pause) => Role::Warning,
        LineKind::Change(Verdict::Recreate | Verdict::Delete) | LineKind::Risk => Role::Error,
        LineKind::Change(Verdict::Wait) | LineKind::Waiting => Role::Active,
        LineKind::Change(Verdict::Forget) | LineKind::Detail | LineKind::Note => Role::Dim,
        LineKind::Summary => Role::Title,
    }
}

/// The role of a health.
pub fn of_health(health: Health) -> Role {
    match health {
        Health::Healthy => Role::Good,
        Health::Suspended => Role::Dim,
        Health::Progressing => Role::Active,
        Health::Unknown | Health::Missing => Role::Warning,
        Health::Degraded => Role::Error,
    }
}

/// The role of a sync.
pub fn of_sync(sync: Sync) -> Role {
    match sync {
        Sync::Synced => Role::Good,
        Sync::OutOfSync => Role::Warning,
        Sync::Unknown => Role::Dim,
    }
}
