//! Our terminal while the view fills it. It is given back on every way out: the end, a question, an error, a panic, a signal that is listened for.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::draw::draw;
use super::{Act, Key, Told, View};
use crate::cli::ui::style::{Paint, Role};
use crate::cli::ui::table::printable_lines;
use crate::model::{Clock, Timestamp};

/// How long a key, or news that are to be drawn, may wait.
const LOOK: Duration = Duration::from_millis(40);
/// How often the view is drawn although nothing happened, for the times in it.
const CLOCK: Duration = Duration::from_secs(1);

/// Whether the terminal is ours at this moment. One per process, as is the terminal: the panic hook has no other way to know.
static OURS: AtomicBool = AtomicBool::new(false);
/// Where the program's own log goes while the terminal is ours.
static LOG: Mutex<Option<Arc<Shared>>> = Mutex::new(None);

struct Shared {
    view: Mutex<View>,
    /// Something is to be drawn.
    news: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Shared {
    /// A poisoned lock is the trace of a panic elsewhere; what it guards is only a picture.
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Order {
    /// Give the terminal back and say so; go on when the next one comes.
    Pause(SyncSender<()>),
    Resume,
    End,
}

/// The view on our terminal.
pub struct FullScreen {
    shared: Arc<Shared>,
    orders: SyncSender<Order>,
    thread: Option<JoinHandle<()>>,
    paused: Mutex<()>,
}

impl FullScreen {
    /// Takes the terminal. `act` is called for what keys ask for.
    ///
    /// # Errors
    /// If it cannot be set up; then it is as it was.
    pub fn begin(
        view: View,
        clock: Arc<dyn Clock>,
        paint: Paint,
        act: impl Fn(Act) + Send + 'static,
    ) -> io::Result<Self> {
        give_back_on_panic();
        let terminal = take()?;
        let shared = Arc::new(Shared { view: Mutex::new(view), news: AtomicBool::new(true), clock });
        *log() = Some(Arc::clone(&shared));
        let (orders, received) = sync_channel(1);
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("view".to_owned()).spawn(move || {
            live(terminal, &own, &received, paint, &act);
            give_back();
        });
        match thread {
            Ok(thread) => Ok(Self { shared, orders, thread: Some(thread), paused: Mutex::new(()) }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Changes what is shown.
    pub fn change(&self, change: impl FnOnce(&mut View, Timestamp)) {
        change(&mut self.shared.view(), self.shared.clock.now());
        self.shared.news.store(true, Ordering::Release);
    }

    /// Gives the terminal back while something else uses it.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let _one = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, is_done) = sync_channel(1);
        // A view that has ended has given it back already.
        let paused = self.orders.send(Order::Pause(done)).is_ok() && is_done.recv().is_ok();
        let result = work();
        if paused {
            let _ = self.orders.send(Order::Resume);
        }
        result
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        log().take();
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        give_back();
    }
}

type Screen = Terminal<CrosstermBackend<io::Stdout>>;

fn take() -> io::Result<Screen> {
    enable_raw_mode()?;
    OURS.store(true, Ordering::SeqCst);
    let taken = execute!(io::stdout(), EnterAlternateScreen)
        .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
    if taken.is_err() {
        give_back();
    }
    taken
}

/// Harmless where it is given back already.
fn give_back() {
    if OURS.swap(false, Ordering::SeqCst) {
        // Nothing can be done about a terminal that is gone.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// What a panic says is read on the terminal as it was.
fn give_back_on_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
    });
}

/// Draws and listens until told to end, or until the terminal is lost.
fn live(mut terminal: Screen, shared: &Shared, orders: &Receiver<Order>, paint: Paint, act: &dyn Fn(Act)) {
    let mut drawn = std::time::Instant::now();
    loop {
        match orders.try_recv() {
            Ok(Order::Pause(done)) => {
                give_back();
                let _ = done.send(());
                if !matches!(orders.recv(), Ok(Order::Resume)) {
                    return;
                }
                match take() {
                    Ok(taken) => terminal = taken,
                    Err(_) => return,
                }
                shared.news.store(true, Ordering::Release);
            }
            Ok(Order::Resume) | Err(TryRecvError::Empty) => {}
            Ok(Order::End) | Err(TryRecvError::Disconnected) => return,
        }
        // A panic elsewhere gave it back, and what it said is to stay.
        if !OURS.load(Ordering::SeqCst) {
            return;
        }
        if shared.news.swap(false, Ordering::AcqRel) || drawn.elapsed() >= CLOCK {
            drawn = std::time::Instant::now();
            let now = shared.clock.now();
            if terminal.draw(|frame| draw(frame, &mut shared.view(), now, paint.0)).is_err() {
                return;
            }
        }
        let read = event::poll(LOOK).and_then(|some| if some { event::read().map(Some) } else { Ok(None) });
        match read {
            Ok(Some(Event::Key(pressed))) => {
                let asked = key(pressed).and_then(|key| shared.view().key(key));
                if let Some(asked) = asked {
                    act(asked);
                }
                shared.news.store(true, Ordering::Release);
            }
            // A new size above all.
            Ok(Some(_)) => shared.news.store(true, Ordering::Release),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

fn key(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char('c') if control => Key::Interrupt,
        KeyCode::Char(_) if control => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}

fn log() -> MutexGuard<'static, Option<Arc<Shared>>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the program's own log: an event while the view fills the terminal, a line on stderr otherwise.
pub struct LogWriter;

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = log().clone();
        match shared {
            Some(shared) => {
                let text = printable_lines(String::from_utf8_lossy(bytes).trim_end());
                let now = shared.clock.now();
                shared.view().tell(now, Told { role: Role::Warning, sign: "!", text });
                shared.news.store(true, Ordering::Release);
                Ok(bytes.len())
            }
            None => io::stderr().lock().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
