//! The view on a canvas.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table, TableState, Wrap};

use super::state::{Pane, View};
use crate::cli::ui::style::{Role, of_health, of_sync};
use crate::cli::ui::table::printable;
use crate::cli::ui::time;
use crate::model::{PortProtocol, Timestamp};
use crate::reconcile::status::ResourceStatus;

/// From this width on, the conditions of the selected resource stand beside the resources.
const WIDE: u16 = 120;

/// Draws it. Colours only if `coloured`.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View, now: Timestamp, coloured: bool) {
    let brush = Brush(coloured);
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(header(view, now, brush), head);
    frame.render_widget(footer(view, brush), foot);
    if view.zoomed {
        view.page = usize::from(body.height.saturating_sub(2)).max(1);
        return match view.pane {
            Pane::Resources => resources(frame, view, body, now, brush),
            Pane::Events => events(frame, view, body, brush),
            Pane::Logs => logs(frame, view, body, brush),
        };
    }
    let wanted = u16::try_from(view.resources().len()).unwrap_or(u16::MAX).saturating_add(3);
    let top = wanted.clamp(5, (body.height * 2 / 5).max(5));
    let [upper, middle, lower] =
        Layout::vertical([Constraint::Length(top), Constraint::Fill(2), Constraint::Fill(3)]).areas(body);
    if body.width >= WIDE {
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(upper);
        resources(frame, view, left, now, brush);
        conditions(frame, view, right, now, brush);
    } else {
        resources(frame, view, upper, now, brush);
    }
    // A page is one of the pane in focus.
    let page = if view.pane == Pane::Events { middle } else { lower };
    view.page = usize::from(page.height.saturating_sub(2)).max(1);
    events(frame, view, middle, brush);
    logs(frame, view, lower, brush);
}

/// Styles by meaning.
#[derive(Clone, Copy)]
struct Brush(bool);

impl Brush {
    fn of(self, role: Role) -> Style {
        let style = match role {
            Role::Title => return Style::new().add_modifier(Modifier::BOLD),
            Role::Dim => return Style::new().add_modifier(Modifier::DIM),
            Role::Plain => return Style::new(),
            Role::Error if !self.0 => return Style::new().add_modifier(Modifier::BOLD),
            Role::Good => Style::new().fg(Color::Green),
            Role::Active | Role::Hint => Style::new().fg(Color::Cyan),
            Role::Warning => Style::new().fg(Color::Yellow),
            Role::Error => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        };
        if self.0 { style } else { Style::new() }
    }

    fn tag(self, index: usize) -> Style {
        const COLORS: [Color; 6] =
            [Color::Cyan, Color::Yellow, Color::Green, Color::Magenta, Color::Blue, Color::LightRed];
        if self.0 { Style::new().fg(COLORS[index % COLORS.len()]) } else { Style::new() }
    }
}

fn header<'a>(view: &View, now: Timestamp, brush: Brush) -> Line<'a> {
    let mut parts = vec![Span::styled(format!(" {}", printable(&view.project)), brush.of(Role::Title))];
    if let Some(status) = &view.status {
        parts.push(Span::raw("  "));
        parts.push(Span::styled(format!("{:?}", status.sync), brush.of(of_sync(status.sync))));
        parts.push(Span::raw(" "));
        parts.push(Span::styled(format!("{:?}", status.health), brush.of(of_health(status.health))));
    }
    if let Some((what, since)) = view.doing.values().next() {
        let more =
            if view.doing.len() > 1 { format!(" and {} more", view.doing.len() - 1) } else { String::new() };
        let text = format!("  → {}{more} {}", printable(what), time::span(now.millis_since(*since)));
        parts.push(Span::styled(text, brush.of(Role::Active)));
    } else if view.ending {
        parts.push(Span::styled("  ending", brush.of(Role::Warning)));
    }
    Line::from(parts)
}

fn footer<'a>(view: &View, brush: Brush) -> Line<'a> {
    if view.typing {
        return Line::from(format!(" filter: {}▏  Enter keeps it, Esc clears it", printable(&view.filter)));
    }
    let text = if view.ending {
        " ending: what runs is finished; Ctrl-C again ends it now"
    } else {
        " q ends  Tab next pane  ↑↓ PgUp PgDn scroll  / filter logs  Enter logs of the selected  z zoom  Esc reset"
    };
    Line::styled(text, brush.of(Role::Dim))
}

fn block<'a>(view: &View, pane: Pane, title: String, brush: Brush) -> Block<'a> {
    let focused = view.pane == pane;
    let style = if focused { brush.of(Role::Title) } else { brush.of(Role::Dim) };
    let mark = if focused { "▸" } else { " " };
    Block::bordered().border_style(style).title(Span::styled(format!("{mark}{title} "), style))
}

fn resources(frame: &mut Frame<'_>, view: &mut View, area: Rect, now: Timestamp, brush: Brush) {
    let block = block(view, Pane::Resources, "resources".to_owned(), brush);
    if view.status.is_none() {
        return frame.render_widget(Paragraph::new("looking …").block(block), area);
    }
    let row = |resource: &ResourceStatus| {
        let message = match &resource.endpoint {
            None if resource.message.is_empty() => printable(resource.path.as_deref().unwrap_or_default()),
            Some(at) if resource.message.is_empty() => {
                let udp = if resource.protocol.is_some_and(PortProtocol::is_udp) { "/udp" } else { "" };
                format!("{}:{}{udp}", at.host, at.port)
            }
            _ => printable(&resource.message),
        };
        Row::new([
            Line::raw(resource.address.to_string()),
            Line::styled(format!("{:?}", resource.sync), brush.of(of_sync(resource.sync))),
            Line::styled(format!("{:?}", resource.health), brush.of(of_health(resource.health))),
            Line::raw(printable(&resource.phase)),
            Line::raw(resource.since.map_or_else(String::new, |at| time::span(now.millis_since(at)))),
            Line::raw(message),
        ])
    };
    let longest = view.resources().iter().map(|r| r.address.to_string().chars().count()).max().unwrap_or(0);
    let widths = [
        Constraint::Length(u16::try_from(longest.clamp(8, 40)).unwrap_or(40)),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Fill(1),
    ];
    let head =
        Row::new(["RESOURCE", "SYNC", "HEALTH", "PHASE", "SINCE", "MESSAGE"]).style(brush.of(Role::Dim));
    let table = Table::new(view.resources().iter().map(row), widths)
        .header(head)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(block);
    let selected = (view.pane == Pane::Resources).then_some(view.selected);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
}

fn conditions(frame: &mut Frame<'_>, view: &View, area: Rect, now: Timestamp, brush: Brush) {
    let resource = view.resources().get(view.selected);
    let title = resource.map_or_else(|| "conditions".to_owned(), |resource| resource.address.to_string());
    let mut lines = Vec::new();
    for condition in resource.into_iter().flat_map(|resource| &resource.conditions) {
        let role = match (condition.kind.as_str(), condition.status) {
            ("Degraded" | "Drifted", crate::model::ConditionStatus::True) => Role::Error,
            ("Ready", crate::model::ConditionStatus::True) => Role::Good,
            ("Progressing", crate::model::ConditionStatus::True) => Role::Active,
            ("Ready", crate::model::ConditionStatus::False) => Role::Warning,
            _ => Role::Plain,
        };
        let since = condition.last_transition.map_or_else(String::new, |at| time::ago(at, now));
        let reason = if condition.reason.is_empty() {
            String::new()
        } else {
            format!(" {}", printable(&condition.reason))
        };
        lines.push(Line::from(vec![
            Span::styled(format!("{}={:?}", condition.kind, condition.status), brush.of(role)),
            Span::raw(format!("{reason} {since}")),
        ]));
        if !condition.message.is_empty() {
            lines.push(Line::styled(format!("  {}", printable(&condition.message)), brush.of(Role::Dim)));
        }
    }
    for note in resource.into_iter().flat_map(|resource| &resource.notes) {
        lines.push(Line::styled(format!("  {}", printable(note)), brush.of(Role::Dim)));
    }
    let block = Block::bordered().border_style(brush.of(Role::Dim)).title(format!(" {title} "));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), area);
}

/// What of `all` lines stands in a window of `height`, `back` lines above the end: how many are left out at the end, and how many are shown.
fn window(all: usize, height: usize, back: usize) -> (usize, usize) {
    let back = back.min(all.saturating_sub(height));
    (back, height.min(all))
}

fn scrolled(back: usize) -> String {
    if back > 0 { format!(" ({back} below)") } else { String::new() }
}

fn events(frame: &mut Frame<'_>, view: &View, area: Rect, brush: Brush) {
    let (back, shown) = window(view.events.len(), usize::from(area.height.saturating_sub(2)), view.back[0]);
    let mut lines: Vec<Line<'_>> = view
        .events
        .iter()
        .rev()
        .skip(back)
        .take(shown)
        .map(|(at, told)| {
            let clock = jiff::Timestamp::from_millisecond(at.0).map_or_else(
                |_| String::new(),
                |at| at.to_zoned(view.zone.clone()).strftime("%H:%M:%S").to_string(),
            );
            Line::from(vec![
                Span::styled(format!("{clock} "), brush.of(Role::Dim)),
                Span::styled(told.sign, brush.of(told.role)),
                Span::raw(" "),
                Span::raw(told.text.as_str()),
            ])
        })
        .collect();
    lines.reverse();
    let block = block(view, Pane::Events, format!("events{}", scrolled(back)), brush);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn logs(frame: &mut Frame<'_>, view: &View, area: Rect, brush: Brush) {
    let (back, shown) = window(view.logs().count(), usize::from(area.height.saturating_sub(2)), view.back[1]);
    let mut lines: Vec<Line<'_>> = view
        .logs()
        .rev()
        .skip(back)
        .take(shown)
        .map(|line| {
            let index = view.tags.get(&line.source).copied().unwrap_or_default();
            Line::from(vec![
                Span::styled(format!("{} | ", line.source), brush.tag(index)),
                Span::raw(line.text.as_str()),
            ])
        })
        .collect();
    lines.reverse();
    let filter =
        if view.filter.is_empty() { String::new() } else { format!(" with `{}`", printable(&view.filter)) };
    let block = block(view, Pane::Logs, format!("logs{filter}{}", scrolled(back)), brush);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::tz::TimeZone;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::{Key, Told};
    use super::*;
    use crate::model::{Address, Condition, ConditionStatus, Endpoint, Health, Sync};
    use crate::reconcile::status::ProjectStatus;

    const NOW: Timestamp = Timestamp(100_000);

    fn resource(address: Address, health: Health, message: &str) -> ResourceStatus {
        ResourceStatus {
            address,
            provider: "local".to_owned(),
            id: None,
            sync: Sync::Synced,
            health,
            phase: "Running".to_owned(),
            message: message.to_owned(),
            conditions: Vec::new(),
            since: Some(Timestamp(NOW.0 - 65_000)),
            restarts: None,
            endpoint: None,
            path: None,
            protocol: None,
            disk: None,
            notes: Vec::new(),
        }
    }

    fn view() -> View {
        let mut view = View::new("shop".to_owned(), TimeZone::UTC);
        let mut api = resource(Address::Sandbox("api".into()), Health::Degraded, "service web keeps ending");
        api.conditions.push(Condition {
            kind: "Ready".to_owned(),
            status: ConditionStatus::False,
            reason: "Failing".to_owned(),
            message: "service web keeps ending".to_owned(),
            last_transition: Some(Timestamp(NOW.0 - 5_000)),
            observed_generation: 1,
        });
        let web = resource(Address::Service("api".into(), "web".into()), Health::Degraded, "exit code 1");
        let mut port = resource(Address::Port("api".into(), 3000), Health::Healthy, "");
        port.endpoint = Some(Endpoint { host: "127.0.0.1".to_owned(), port: 13000, listening: true });
        view.status(ProjectStatus {
            format_version: "1.0",
            project: "shop".to_owned(),
            sync: Sync::Synced,
            health: Health::Degraded,
            resources: vec![api, web, port],
        });
        let told = |role, sign, text: &str| Told { role, sign, text: text.to_owned() };
        view.tell(Timestamp(90_000), told(Role::Good, "✓", "create sandbox/api (12ms)"));
        view.tell(Timestamp(99_000), told(Role::Good, "⇢", "a.js modified → api:/work (21ms)\nand more"));
        view.log("api", "web", b"\x1b[31mboom\x1b[0m");
        view.log("api", "worker", "größer\t日本".as_bytes());
        view
    }

    fn drawn(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, NOW, true)).unwrap();
        let text = terminal.backend().to_string();
        text.lines()
            .map(|line| line.trim_matches('"').trim_end())
            .fold(String::new(), |all, line| all + line + "\n")
    }

    fn snapshot(name: &str, text: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../../../tests/it/snapshots");
        settings.set_prepend_module_to_snapshot(false);
        settings.bind(|| insta::assert_snapshot!(name, text));
    }

    #[test]
    fn resources_events_and_logs_stand_below_each_other() {
        let mut view = view();
        view.begins(1, "restart sandbox/api/service/web".to_owned(), Timestamp(NOW.0 - 3_000));
        snapshot("view_narrow", &drawn(&mut view, 80, 20));
    }

    #[test]
    fn a_wide_one_has_the_conditions_of_what_is_selected() {
        let mut view = view();
        view.key(Key::Tab);
        snapshot("view_wide", &drawn(&mut view, 130, 18));
        // The logs of the service that was chosen, alone and filling the screen.
        view.key(Key::Down);
        view.key(Key::Enter);
        view.key(Key::Char('z'));
        snapshot("view_zoomed", &drawn(&mut view, 60, 6));
        view.key(Key::Char('/'));
        view.is_ending();
        assert!(drawn(&mut view, 60, 6).contains("filter: api/web"));
    }

    #[test]
    fn any_size_is_drawn() {
        for (width, height) in [(0, 0), (1, 1), (3, 2), (20, 3), (79, 5), (300, 100)] {
            for pane in 0..3 {
                let mut view = view();
                (0..pane).for_each(|_| assert_eq!(view.key(Key::Tab), None));
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| draw(frame, &mut view, NOW, true)).unwrap();
                view.key(Key::Char('z'));
                view.key(Key::PageUp);
                terminal.draw(|frame| draw(frame, &mut view, NOW, true)).unwrap();
            }
        }
    }

    #[test]
    fn without_colours_there_are_none() {
        let mut terminal = Terminal::new(TestBackend::new(110, 18)).unwrap();
        terminal.draw(|frame| draw(frame, &mut view(), NOW, false)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    }
}
