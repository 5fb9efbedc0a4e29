//! The one table renderer.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::style::{Paint, Role};

/// A table for people. Cells are plain text; what comes from a sandbox cannot reach the terminal as control characters.
#[derive(Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    role: Role,
}

impl Cell {
    /// A cell with a role.
    pub fn new(text: impl Into<String>, role: Role) -> Self {
        Self { text: printable(&text.into()), role }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Role::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Role::Plain)
    }
}

impl Table {
    /// A table with these column titles.
    pub fn new(header: impl IntoIterator<Item = &'static str>) -> Self {
        Self { header: header.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text: columns two spaces apart, no borders. The last column is wrapped at `width` characters if there is one.
    pub fn render(&self, width: Option<u16>, paint: Paint) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.width()).collect();
        for row in &self.rows {
            for (column, cell) in widths.iter_mut().zip(row) {
                *column = (*column).max(cell.text.width());
            }
        }
        let last = widths.len().saturating_sub(1);
        let indent: usize = widths.iter().take(last).map(|width| width + GAP).sum();
        let room = width.map(|width| usize::from(width).saturating_sub(indent).max(MIN_LAST));
        let mut out = String::new();
        let header = self.header.iter().map(|title| Cell::new(*title, Role::Dim)).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            let mut gap = 0;
            for (column, cell) in row.iter().enumerate() {
                let pieces = match room {
                    Some(room) if column == last => wrap(&cell.text, room),
                    _ => vec![cell.text.clone()],
                };
                for (index, piece) in pieces.iter().enumerate().filter(|(_, piece)| !piece.is_empty()) {
                    if index > 0 {
                        out.push_str(&std::mem::take(&mut line));
                        out.push('\n');
                        gap = indent;
                    }
                    line.extend(std::iter::repeat_n(' ', gap));
                    gap = 0;
                    line.push_str(&paint.paint(cell.role, piece));
                }
                gap += widths[column] + GAP - cell.text.width().min(widths[column]);
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

/// Spaces between columns.
const GAP: usize = 2;
/// The last column is not made narrower than this; a terminal that small wraps by itself.
const MIN_LAST: usize = 20;

/// The text in lines of at most `room` characters, broken at spaces where there are any.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let wide = word.trim_end().width();
        if used > 0 && used + wide > room {
            lines.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let wide = c.width().unwrap_or(0);
            if used + wide > room && c != ' ' {
                lines.push(String::new());
                used = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push(c);
            }
            used += wide;
        }
    }
    lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The text without control characters, which could move the cursor or forge lines; new lines and tabs become spaces.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The same for a text of several lines, which stay lines.
pub fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(["NAME", "STATE", "MESSAGE"]);
        table.row(["api".into(), Cell::new("Running", Role::Good), "".into()]);
        table.row(["database".into(), Cell::new("Failed", Role::Error), "it ended\nwith \u{1b}[2J".into()]);
        table
    }

    #[test]
    fn columns_are_two_apart_and_lines_have_no_tail() {
        let expected = "\
NAME      STATE    MESSAGE
api       Running
database  Failed   it ended with \u{fffd}[2J
";
        assert_eq!(sample().render(None, Paint(false)), expected);
    }

    #[test]
    fn colour_changes_no_width() {
        let plain = sample().render(None, Paint(false));
        let coloured = sample().render(None, Paint(true));
        assert_ne!(plain, coloured);
        let mut stripped = String::new();
        let mut inside = false;
        for c in coloured.chars() {
            match c {
                '\u{1b}' => inside = true,
                'm' if inside => inside = false,
                c if !inside => stripped.push(c),
                _ => {}
            }
        }
        let trimmed: Vec<&str> = stripped.lines().map(str::trim_end).collect();
        assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
    }

    #[test]
    fn long_messages_wrap_at_the_width() {
        let mut table = Table::new(["NAME", "MESSAGE"]);
        table.row(["api".into(), "word ".repeat(30).into()]);
        let text = table.render(Some(40), Paint(false));
        assert!(text.lines().count() > 3 && text.lines().all(|line| line.chars().count() <= 40), "{text}");
    }
}
