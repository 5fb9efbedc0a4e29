//! The last output of a terminal, byte for byte and bounded, for those who come later. What they get begins between two characters and outside
//! any escape sequence, with the modes that the terminal was in there, and asks their terminals nothing.

use std::collections::VecDeque;

/// How many bytes are kept.
pub const KEPT: usize = 256 * 1024;
/// Of a sequence so many bytes are looked at.
const LOOKED_AT: usize = 32;

/// Private modes of terminals that outlast what switched them, and how they are at first. What selects the screen comes first, since other things
/// belong to a screen.
const MODES: [(u16, bool); 16] = [
    (1049, false), // the other screen
    (1047, false),
    (47, false),
    (1, false), // keys of the cursor
    (7, true),  // wrap
    (9, false), // mouse
    (25, true), // the cursor is shown
    (66, false),
    (1000, false), // mouse
    (1002, false),
    (1003, false),
    (1004, false), // focus
    (1005, false),
    (1006, false),
    (1015, false),
    (2004, false), // paste
];

/// The last output of a terminal.
#[derive(Debug, Default)]
pub struct Scrollback {
    bytes: VecDeque<u8>,
    /// How many bytes came before the first of them.
    start: u64,
    /// Where a terminal stands that has seen those.
    before: Reader,
}

impl Scrollback {
    /// How many bytes there were in all.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Adds output; what is too old goes.
    pub fn push(&mut self, data: &[u8]) {
        let data = match data.len().checked_sub(KEPT) {
            None | Some(0) => data,
            // Never all of it at once: what comes in has the size of one read.
            Some(over) => {
                self.push(&data[..over]);
                &data[over..]
            }
        };
        let over = (self.bytes.len() + data.len()).saturating_sub(KEPT);
        for byte in self.bytes.drain(..over) {
            self.before.step(byte);
        }
        self.start += over as u64;
        self.bytes.extend(data);
    }

    /// Output from the `at`th byte on, as much as lies in one piece; `None` if that is gone.
    pub fn from(&self, at: u64) -> Option<&[u8]> {
        let at = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let (first, second) = self.bytes.as_slices();
        Some(match at.checked_sub(first.len()) {
            None => &first[at..],
            Some(at) => second.get(at..).unwrap_or_default(),
        })
    }

    /// All that is kept, for a terminal in its usual modes.
    pub fn replay(&self) -> Vec<u8> {
        self.render(Vec::new(), |modes, out| modes.enter(out))
    }

    /// All that is kept, for a terminal that has seen something of it, nobody knows what: it is cleared first.
    pub fn replay_over(&self, note: &str) -> Vec<u8> {
        self.render(vec![CANCEL], |modes, out| {
            modes.set_all(out);
            out.extend_from_slice(b"\x1b[m\x1b[H\x1b[2J");
            out.extend_from_slice(note.as_bytes());
        })
    }

    fn render(&self, mut out: Vec<u8>, begin: impl FnOnce(&Modes, &mut Vec<u8>)) -> Vec<u8> {
        let mut reader = self.before.clone();
        let mut bytes = self.bytes.iter().copied();
        while reader.at != At::Ground
            && let Some(byte) = bytes.next()
        {
            reader.step(byte);
        }
        begin(&reader.modes, &mut out);
        out.reserve(bytes.len());
        let mut whole = out.len();
        for byte in bytes {
            out.push(byte);
            if reader.step(byte) == Step::Question {
                out.truncate(whole);
            }
            if reader.at == At::Ground {
                whole = out.len();
            }
        }
        out
    }

    /// What brings a terminal that has seen all of it back to its usual modes.
    pub fn undo(&self) -> Vec<u8> {
        let mut reader = self.before.clone();
        for byte in &self.bytes {
            reader.step(*byte);
        }
        let mut out = Vec::new();
        if reader.at != At::Ground {
            out.push(CANCEL);
        }
        reader.modes.leave(&mut out);
        out
    }
}

/// Gives up a sequence that is not complete.
const CANCEL: u8 = 0x18;

/// The modes of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Modes {
    on: [bool; MODES.len()],
    keypad: bool,
    /// The flags of the keyboard protocol of kitty, where a program set some.
    keyboard: Option<u16>,
    /// The level of xterm's `modifyOtherKeys`.
    other_keys: u16,
}

impl Default for Modes {
    fn default() -> Self {
        Self { on: MODES.map(|(_, usual)| usual), keypad: false, keyboard: None, other_keys: 0 }
    }
}

impl Modes {
    fn set(&mut self, mode: u16, on: bool) {
        if let Some(at) = MODES.iter().position(|(known, _)| *known == mode) {
            self.on[at] = on;
        }
    }

    fn unusual(&self) -> impl DoubleEndedIterator<Item = (u16, bool)> {
        MODES.iter().zip(self.on).filter(|((_, usual), on)| usual != on).map(|((mode, _), on)| (*mode, on))
    }

    fn enter(&self, out: &mut Vec<u8>) {
        self.unusual().for_each(|(mode, on)| switch(mode, on, out));
        self.keys(out);
    }

    fn set_all(&self, out: &mut Vec<u8>) {
        MODES.iter().zip(self.on).for_each(|((mode, _), on)| switch(*mode, on, out));
        self.keys(out);
    }

    fn keys(&self, out: &mut Vec<u8>) {
        if self.keypad {
            out.extend_from_slice(b"\x1b=");
        }
        if let Some(flags) = self.keyboard {
            out.extend_from_slice(format!("\x1b[>{flags}u").as_bytes());
        }
        if self.other_keys > 0 {
            out.extend_from_slice(format!("\x1b[>4;{}m", self.other_keys).as_bytes());
        }
    }

    fn leave(&self, out: &mut Vec<u8>) {
        if self.other_keys > 0 {
            out.extend_from_slice(b"\x1b[>4m");
        }
        if self.keyboard.is_some() {
            out.extend_from_slice(b"\x1b[<u");
        }
        if self.keypad {
            out.extend_from_slice(b"\x1b>");
        }
        self.unusual().rev().for_each(|(mode, on)| switch(mode, !on, out));
        out.extend_from_slice(b"\x1b[m");
    }
}

fn switch(mode: u16, on: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("\x1b[?{mode}{}", if on { 'h' } else { 'l' }).as_bytes());
}

/// Where in its input a terminal is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    Ground,
    /// So many bytes of a character are still to come.
    Character(u8),
    /// After ESC.
    Escape,
    /// After ESC and intermediate bytes.
    Intermediate,
    /// In a control sequence, after ESC [.
    Control,
    /// In a string, of the kind that this byte after ESC began.
    Text(u8),
    /// After ESC in a string.
    TextEscape(u8),
}

/// What a byte was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing to remark.
    Plain,
    /// The last of something that a terminal answers.
    Question,
}

/// Follows output as far as is needed to know where it may be cut (ECMA-48, and what xterm made of it).
#[derive(Debug, Clone, Default)]
struct Reader {
    at: At,
    /// The first bytes of the sequence, without its introducer.
    text: Vec<u8>,
    last: u8,
    modes: Modes,
}

impl Reader {
    fn step(&mut self, byte: u8) -> Step {
        match (self.at, byte) {
            (At::Ground, 0x05) => return Step::Question,
            (At::Character(left), 0x80..=0xbf) => {
                self.at = if left > 1 { At::Character(left - 1) } else { At::Ground };
            }
            (At::Text(kind), 0x1b) => self.at = At::TextEscape(kind),
            (At::Text(b']'), 0x07) => return self.text_ended(b']'),
            (At::TextEscape(kind), b'\\') => return self.text_ended(kind),
            (_, CANCEL | 0x1a) => self.at = At::Ground,
            (At::Text(_), byte) => self.keep(byte),
            // Whatever is not complete is given up.
            (_, 0x1b) => self.at = At::Escape,
            (At::Ground | At::Character(_), byte) => {
                self.at = match byte {
                    0xc2..=0xdf => At::Character(1),
                    0xe0..=0xef => At::Character(2),
                    0xf0..=0xf4 => At::Character(3),
                    _ => At::Ground,
                };
            }
            (At::Escape | At::TextEscape(_), byte) => return self.escape(byte),
            (At::Intermediate, 0x30..) => self.at = At::Ground,
            (At::Control, 0x20..=0x3f) => self.keep(byte),
            (At::Control, 0x40..) => {
                self.at = At::Ground;
                return self.control(byte);
            }
            (At::Intermediate | At::Control, _) => {}
        }
        Step::Plain
    }

    fn keep(&mut self, byte: u8) {
        if self.text.len() < LOOKED_AT {
            self.text.push(byte);
        }
        self.last = byte;
    }

    fn escape(&mut self, byte: u8) -> Step {
        self.text.clear();
        self.last = 0;
        self.at = At::Ground;
        match byte {
            b'[' => self.at = At::Control,
            b']' | b'P' | b'X' | b'^' | b'_' => self.at = At::Text(byte),
            0x20..=0x2f => self.at = At::Intermediate,
            0x00..=0x1f => self.at = At::Escape,
            b'Z' => return Step::Question,
            b'c' => self.modes = Modes::default(),
            b'=' | b'>' => self.modes.keypad = byte == b'=',
            _ => {}
        }
        Step::Plain
    }

    fn text_ended(&mut self, kind: u8) -> Step {
        self.at = At::Ground;
        let asks = match kind {
            b']' => self.last == b'?',
            b'P' => self.text.starts_with(b"$q") || self.text.starts_with(b"+q"),
            b'_' => self.text.starts_with(b"G"), // pictures: whether they can be shown
            _ => false,
        };
        if asks { Step::Question } else { Step::Plain }
    }

    fn control(&mut self, last: u8) -> Step {
        let (marker, text) = match self.text.first() {
            Some(marker @ b'<'..=b'?') => (*marker, &self.text[1..]),
            _ => (0, &self.text[..]),
        };
        let numbers: Vec<u16> = text
            .split(|byte| *byte == b';')
            .map(|number| std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
            .collect();
        let (first, second) = (numbers[0], numbers.get(1).copied().unwrap_or(0));
        let modes = &mut self.modes;
        match (marker, last) {
            (b'?', b'h' | b'l') => numbers.iter().for_each(|mode| modes.set(*mode, last == b'h')),
            (b'>' | b'=', b'u') => modes.keyboard = Some(first),
            (b'<', b'u') => modes.keyboard = None,
            (b'>', b'm') if first == 4 => modes.other_keys = second,
            (0, b'p') if text == b"!" => {
                modes.set(1, false);
                modes.set(25, true);
                modes.keypad = false;
            }
            _ => {}
        }
        let asks = match (marker, last) {
            (_, b'c' | b'n') | (b'>', b'q') | (b'?', b'u' | b'm' | b'S') => true,
            (_, b'p') => text.ends_with(b"$"),
            (0, b'x') => !text.ends_with(b"$") && !text.ends_with(b"*"),
            (0, b't') => matches!(first, 11 | 13..=16 | 18..=21),
            _ => false,
        };
        if asks { Step::Question } else { Step::Plain }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(bytes: &[u8]) -> Scrollback {
        let mut output = Scrollback::default();
        bytes.chunks(4096).for_each(|chunk| output.push(chunk));
        output
    }

    /// Output that is too long by `over` bytes, and begins so.
    fn cut(first: &[u8], over: usize) -> Vec<u8> {
        let rest = vec![b'.'; KEPT + over - first.len()];
        let replay = of(&[first, &rest].concat()).replay();
        let dots = replay.iter().position(|byte| *byte == b'.').unwrap();
        assert!(replay[dots..].iter().all(|byte| *byte == b'.'), "{:?}", &replay[..dots + 9]);
        replay[..dots].to_vec()
    }

    #[test]
    fn what_is_short_comes_back_as_it_was() {
        let bytes = "a\x1b[31mrot\x1b]0;title\x07 \u{e9}\u{1f600}\r\n".as_bytes();
        assert_eq!(of(bytes).replay(), bytes);
        let output = of(bytes);
        assert_eq!((output.from(2).unwrap(), output.end()), (&bytes[2..], bytes.len() as u64));
        assert_eq!(output.from(output.end()).unwrap(), b"");
    }

    #[test]
    fn what_is_long_is_cut_where_nothing_is_torn() {
        for first in [
            "\u{e9}",
            "\u{20ac}",
            "\u{1f600}",
            "\x1b[38;5;200m",
            "\x1b(B",
            "\x1b]0;a title\x07",
            "\x1b]8;;x\x1b\\",
            "\x1bPq#0;2;0\n\x1b\\",
        ] {
            for over in 1..=first.len() {
                assert_eq!(cut(first.as_bytes(), over), b"", "{first:?} {over}");
            }
            assert_eq!(cut(first.as_bytes(), 0), first.as_bytes());
        }
        assert_eq!(of(&[b'.'; KEPT + 5]).from(4), None);
        assert!(!of(&[b'.'; KEPT + 5]).from(5).unwrap().is_empty());
    }

    #[test]
    fn modes_outlast_what_switched_them() {
        let full = b"\x1b[?1049h\x1b[?25l\x1b[?1000;1006h\x1b=\x1b[>1u\x1b[>4;2m";
        let entered = b"\x1b[?1049h\x1b[?25l\x1b[?1000h\x1b[?1006h\x1b=\x1b[>1u\x1b[>4;2m";
        assert_eq!(cut(full, full.len()), entered);
        let undone = b"\x1b[>4m\x1b[<u\x1b>\x1b[?1006l\x1b[?1000l\x1b[?25h\x1b[?1049l\x1b[m";
        assert_eq!(of(full).undo(), undone);
        assert_eq!(of(&[&full[..], b"\x1bc"].concat()).undo(), b"\x1b[m");
        assert_eq!(
            of(b"\x1b[?2004h$ \x1b[?2004l\x1b[3").undo(),
            b"\x18\x1b[m",
            "and what is not complete is given up"
        );
        let over = of(full).replay_over("note");
        assert!(over.starts_with(b"\x18\x1b[?1049l"), "as it was before what is kept");
        assert!(over.ends_with(&[b"\x1b[m\x1b[H\x1b[2Jnote", &full[..]].concat()));
    }

    #[test]
    fn no_question_is_asked_twice() {
        let questions: [&[u8]; 14] = [
            b"\x05",
            b"\x1b[c",
            b"\x1b[>c",
            b"\x1b[6n",
            b"\x1b[?996n",
            b"\x1b[>q",
            b"\x1b[?u",
            b"\x1b[?2026$p",
            b"\x1b[18t",
            b"\x1bZ",
            b"\x1b]11;?\x07",
            b"\x1b]10;?\x1b\\",
            b"\x1bP+q544e\x1b\\",
            b"\x1bP$qm\x1b\\",
        ];
        for question in questions {
            assert_eq!(of(&[b"a", question, b"b"].concat()).replay(), b"ab", "{}", question.escape_ascii());
        }
        for told in [&b"\x1b[22;0t"[..], b"\x1b[1 q", b"\x1b[!p", b"\x1b[u", b"\x1b]0;why\x07", b"\x1b[1;2$x"]
        {
            assert_eq!(of(told).replay(), told, "{}", told.escape_ascii());
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
        #[test]
        fn any_bytes_are_survived_and_bounded(chunks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..60_000), 0..12)) {
            let mut output = Scrollback::default();
            for chunk in &chunks {
                output.push(chunk);
            }
            assert!(output.replay().len() <= KEPT + 256);
            let _ = output.undo();
            let all = chunks.concat();
            let kept = &all[all.len().saturating_sub(KEPT)..];
            let at = output.end() - kept.len() as u64;
            let first = output.from(at).unwrap();
            assert_eq!(first, &kept[..first.len()]);
        }
    }
}
