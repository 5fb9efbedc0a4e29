//! What is shown, and how keys change that.

use std::collections::{BTreeMap, VecDeque};

use jiff::tz::TimeZone;

use crate::cli::ui::style::Role;
use crate::cli::ui::table::printable;
use crate::model::{Address, Timestamp};
use crate::plan::StepId;
use crate::reconcile::status::{ProjectStatus, ResourceStatus};

/// How many events and lines of logs can be scrolled back to.
const MAX_EVENTS: usize = 2_000;
const MAX_LOGS: usize = 10_000;
/// The most characters of one line that are kept.
const MAX_LINE: usize = 2_000;

/// One line that tells what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What it is.
    pub role: Role,
    /// The sign before it; empty for none.
    pub sign: &'static str,
    /// For people; without control characters except line breaks.
    pub text: String,
}

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace.
    Backspace,
    /// Tab.
    Tab,
    /// Shift-Tab.
    BackTab,
    /// One line up.
    Up,
    /// One line down.
    Down,
    /// One page up.
    PageUp,
    /// One page down.
    PageDown,
    /// To the first line.
    Home,
    /// To the last line.
    End,
    /// Ctrl-C.
    Interrupt,
}

/// What a key asks for beyond the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// End watching; asked for twice, now.
    Quit,
}

/// One of the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Resources,
    Events,
    Logs,
}

/// One line of a service's log.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub source: String,
    pub text: String,
}

/// What is shown.
pub struct View {
    pub(super) project: String,
    pub(super) zone: TimeZone,
    pub(super) status: Option<ProjectStatus>,
    /// Steps under way, with what they do and since when.
    pub(super) doing: BTreeMap<StepId, (String, Timestamp)>,
    pub(super) events: VecDeque<(Timestamp, Told)>,
    logs: VecDeque<Logged>,
    /// The services that have written, in the order in which they began.
    pub(super) tags: BTreeMap<String, usize>,
    pub(super) pane: Pane,
    /// The pane in focus fills the screen.
    pub(super) zoomed: bool,
    pub(super) selected: usize,
    /// How many lines above the last one the events and the logs stand.
    pub(super) back: [usize; 2],
    /// How many lines a page has; the last drawing says so.
    pub(super) page: usize,
    /// Only lines of logs with this in them or in their source.
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
    /// Whether it is ending.
    pub(super) ending: bool,
}

impl View {
    /// Nothing is known yet. Times are shown in this zone.
    pub fn new(project: String, zone: TimeZone) -> Self {
        Self {
            project,
            zone,
            status: None,
            doing: BTreeMap::new(),
            events: VecDeque::new(),
            logs: VecDeque::new(),
            tags: BTreeMap::new(),
            pane: Pane::Logs,
            zoomed: false,
            selected: 0,
            back: [0; 2],
            page: 10,
            filter: String::new(),
            typing: false,
            ending: false,
        }
    }

    /// Something happened. A text of several lines is several lines.
    pub fn tell(&mut self, now: Timestamp, told: Told) {
        let mut sign = told.sign;
        for line in told.text.lines() {
            let text = line.chars().take(MAX_LINE).collect();
            push(&mut self.events, MAX_EVENTS, (now, Told { role: told.role, sign, text }));
            // Whoever reads what was before stays there.
            if self.back[0] > 0 {
                self.back[0] += 1;
            }
            sign = " ";
        }
    }

    /// A service has written a line.
    pub fn log(&mut self, sandbox: &str, service: &str, text: &[u8]) {
        let source = format!("{sandbox}/{service}");
        let next = self.tags.len();
        self.tags.entry(source.clone()).or_insert(next);
        let logged = Logged { source, text: plain(&String::from_utf8_lossy(text)) };
        if self.back[1] > 0 && self.passes(&logged) {
            self.back[1] += 1;
        }
        push(&mut self.logs, MAX_LOGS, logged);
    }

    /// How things are now.
    pub fn status(&mut self, status: ProjectStatus) {
        self.project.clone_from(&status.project);
        self.selected = self.selected.min(status.resources.len().saturating_sub(1));
        self.status = Some(status);
    }

    /// A step begins.
    pub fn begins(&mut self, step: StepId, what: String, now: Timestamp) {
        self.doing.insert(step, (what, now));
    }

    /// A step has ended, or all of them.
    pub fn ends(&mut self, step: Option<StepId>) {
        match step {
            Some(step) => drop(self.doing.remove(&step)),
            None => self.doing.clear(),
        }
    }

    /// It was asked to end.
    pub fn is_ending(&mut self) {
        self.ending = true;
    }

    /// Whether something on it changes with the clock alone.
    pub fn is_moving(&self) -> bool {
        !self.doing.is_empty()
    }

    /// Lines of logs that pass the filter.
    pub(super) fn logs(&self) -> impl DoubleEndedIterator<Item = &Logged> {
        self.logs.iter().filter(|line| self.passes(line))
    }

    fn passes(&self, line: &Logged) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty()
            || line.source.to_lowercase().contains(&wanted)
            || line.text.to_lowercase().contains(&wanted)
    }

    pub(super) fn resources(&self) -> &[ResourceStatus] {
        self.status.as_ref().map_or(&[], |status| &status.resources)
    }

    /// A key was pressed.
    pub fn key(&mut self, key: Key) -> Option<Act> {
        if key == Key::Interrupt {
            return Some(Act::Quit);
        }
        if self.typing {
            match key {
                Key::Char(c) => self.filter.push(c),
                Key::Backspace => drop(self.filter.pop()),
                Key::Escape => {
                    self.filter.clear();
                    self.typing = false;
                }
                Key::Enter => self.typing = false,
                _ => {}
            }
            self.back[1] = 0;
            return None;
        }
        match key {
            Key::Char('q') => return Some(Act::Quit),
            Key::Tab => {
                self.pane = match self.pane {
                    Pane::Resources => Pane::Events,
                    Pane::Events => Pane::Logs,
                    Pane::Logs => Pane::Resources,
                };
            }
            Key::BackTab => {
                self.pane = match self.pane {
                    Pane::Resources => Pane::Logs,
                    Pane::Events => Pane::Resources,
                    Pane::Logs => Pane::Events,
                };
            }
            Key::Char('z') => self.zoomed = !self.zoomed,
            Key::Char('/') => {
                self.typing = true;
                self.pane = Pane::Logs;
            }
            Key::Escape => {
                self.filter.clear();
                self.back = [0; 2];
                self.zoomed = false;
            }
            Key::Enter if self.pane == Pane::Resources => self.follow_selected(),
            Key::Up | Key::Char('k') => self.scroll(-1),
            Key::Down | Key::Char('j') => self.scroll(1),
            Key::PageUp => self.scroll(-(self.page as isize)),
            Key::PageDown => self.scroll(self.page as isize),
            Key::Home | Key::Char('g') => self.scroll(isize::MIN / 2),
            Key::End | Key::Char('G') => self.scroll(isize::MAX / 2),
            _ => {}
        }
        None
    }

    /// The logs of what is selected, and of nothing else.
    fn follow_selected(&mut self) {
        let Some(resource) = self.resources().get(self.selected) else { return };
        self.filter = match &resource.address {
            Address::Service(sandbox, service) => format!("{sandbox}/{service}"),
            other => other.sandbox().map(|name| format!("{name}/")).unwrap_or_default(),
        };
        self.back[1] = 0;
        self.pane = Pane::Logs;
    }

    fn scroll(&mut self, lines: isize) {
        match self.pane {
            Pane::Resources => {
                let last = self.resources().len().saturating_sub(1);
                self.selected = self.selected.saturating_add_signed(lines).min(last);
            }
            Pane::Events => {
                let most = self.events.len().saturating_sub(self.page);
                self.back[0] = self.back[0].saturating_add_signed(-lines).min(most);
            }
            Pane::Logs => {
                let most = self.logs().count().saturating_sub(self.page);
                self.back[1] = self.back[1].saturating_add_signed(-lines).min(most);
            }
        }
    }
}

fn push<T>(lines: &mut VecDeque<T>, most: usize, line: T) {
    if lines.len() == most {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// The text without colours and other sequences for a terminal, which is ours.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().take(MAX_LINE).peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' if rest.peek() == Some(&'[') => {
                rest.next();
                // Parameters, up to the letter that ends it.
                while rest.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {}
            }
            '\t' => out.push_str("    "),
            c => out.push(c),
        }
    }
    printable(out.trim_end())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn view() -> View {
        View::new("shop".to_owned(), TimeZone::UTC)
    }

    fn told(text: &str) -> Told {
        Told { role: Role::Plain, sign: "·", text: text.to_owned() }
    }

    #[test]
    fn keys_filter_scroll_and_end() {
        let mut view = view();
        for n in 0..100 {
            view.log("api", if n % 2 == 0 { "web" } else { "worker" }, format!("line {n}").as_bytes());
        }
        assert_eq!(view.logs().count(), 100);
        "/WEB".chars().for_each(|c| assert_eq!(view.key(Key::Char(c)), None));
        assert_eq!((view.logs().count(), view.typing), (50, true));
        // While typing, q is a letter.
        assert_eq!(view.key(Key::Char('q')), None);
        assert_eq!(view.key(Key::Backspace), None);
        assert_eq!(view.key(Key::Enter), None);
        assert_eq!((view.logs().count(), view.typing), (50, false));
        view.key(Key::PageUp);
        assert_eq!(view.back[1], 10);
        // What comes meanwhile does not move what is read.
        view.log("api", "worker", b"unseen");
        view.log("api", "web", b"seen");
        assert_eq!(view.back[1], 11);
        view.key(Key::Home);
        assert_eq!(view.back[1], 41);
        view.key(Key::Escape);
        assert_eq!((view.logs().count(), view.back[1]), (102, 0));
        assert_eq!(view.key(Key::Char('q')), Some(Act::Quit));
        view.key(Key::Char('/'));
        assert_eq!(view.key(Key::Interrupt), Some(Act::Quit), "Ctrl-C ends it while typing too");
    }

    #[test]
    fn what_is_kept_is_bounded_and_cannot_steer_the_terminal() {
        let mut view = view();
        for n in 0..=MAX_EVENTS {
            view.tell(Timestamp(0), told(&format!("{n}\nmore")));
        }
        assert_eq!(view.events.len(), MAX_EVENTS);
        for n in 0..=MAX_LOGS {
            view.log("a", "b", n.to_string().as_bytes());
        }
        assert_eq!(view.logs().count(), MAX_LOGS);
        assert_eq!(plain("\u{1b}[1;32mgood\u{1b}[0m\tnews\u{7}\r"), "good    news\u{fffd}");
        assert_eq!(plain(&"x".repeat(MAX_LINE * 2)).len(), MAX_LINE);
    }
}
