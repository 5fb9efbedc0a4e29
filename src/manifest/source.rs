//! Where a value stands: files as read, byte spans into them, and positions for people.

use std::path::{Path, PathBuf};

use crate::model::Location;

/// The most bytes one file of a manifest may have.
pub const MAX_FILE_BYTES: u64 = 8 << 20;

/// A range of bytes in one source file. Small and `Copy`: every value of the tree carries one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    pub file: u32,
    pub start: u32,
    pub end: u32,
}

/// One file as read: valid UTF-8, without a byte order mark.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// The name shown to people.
    pub name: String,
    /// The directory that relative paths in this file start from.
    pub dir: PathBuf,
    pub text: String,
    line_starts: Vec<u32>,
    /// How many characters stand before each [`MARK`]th byte, so that a column in a very long line is found fast.
    char_marks: Vec<u32>,
    ascii: bool,
}

const MARK: usize = 128;

fn characters(bytes: &[u8]) -> u32 {
    // Every byte that does not continue a character begins one.
    bytes.iter().filter(|b| (**b & 0xC0) != 0x80).count() as u32
}

impl SourceFile {
    fn characters_before(&self, offset: usize) -> u32 {
        let offset = offset.min(self.text.len());
        if self.ascii {
            return offset as u32;
        }
        let mark = offset / MARK;
        let before = self.char_marks.get(mark).copied().unwrap_or(0);
        before + characters(self.text.as_bytes().get(mark * MARK..offset).unwrap_or_default())
    }
}

/// All files of one manifest. Spans index into it.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    files: Vec<SourceFile>,
}

impl Sources {
    pub fn add(&mut self, name: String, dir: PathBuf, text: String) -> u32 {
        let mut line_starts = vec![0];
        line_starts.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i as u32 + 1));
        let ascii = text.is_ascii();
        let mut char_marks = Vec::with_capacity(text.len() / MARK + 1);
        let mut before = 0;
        for chunk in text.as_bytes().chunks(MARK) {
            char_marks.push(before);
            before += characters(chunk);
        }
        char_marks.push(before);
        self.files.push(SourceFile { name, dir, text, line_starts, char_marks, ascii });
        self.files.len() as u32 - 1
    }

    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    pub fn file(&self, id: u32) -> Option<&SourceFile> {
        self.files.get(id as usize)
    }

    /// The source text under a span; empty if the span is not of these sources.
    pub fn slice(&self, span: Span) -> &str {
        self.file(span.file).and_then(|f| f.text.get(span.start as usize..span.end as usize)).unwrap_or("")
    }

    /// `path` as the file that holds `span` means it: relative paths start at that file's directory, `~/` at `home`.
    pub fn resolve_path(&self, span: Span, path: &str, home: Option<&Path>) -> PathBuf {
        if let (Some(rest), Some(home)) = (path.strip_prefix("~/"), home) {
            return home.join(rest);
        }
        match self.file(span.file) {
            Some(file) => file.dir.join(path),
            None => PathBuf::from(path),
        }
    }

    /// Line and column of a byte offset, both from 1.
    pub fn position(&self, file: u32, offset: u32) -> (u32, u32) {
        let Some(source) = self.file(file) else { return (1, 1) };
        let line = source.line_starts.partition_point(|start| *start <= offset).max(1) - 1;
        let start = source.line_starts.get(line).copied().unwrap_or(0) as usize;
        let column =
            source.characters_before(offset as usize).saturating_sub(source.characters_before(start));
        (line as u32 + 1, column + 1)
    }

    pub fn location(&self, span: Span) -> Location {
        let (line, column) = self.position(span.file, span.start);
        let file = self.file(span.file).map_or_else(|| "<unknown>".to_owned(), |f| f.name.clone());
        Location { file, line, column }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let mut sources = Sources::default();
        let file = sources.add("f".into(), PathBuf::new(), "a: é漢x\r\nb: 1\n".into());
        assert_eq!(sources.position(file, 0), (1, 1));
        let x = sources.file(file).unwrap().text.find('x').unwrap() as u32;
        assert_eq!(sources.position(file, x), (1, 6));
        let b = sources.file(file).unwrap().text.find('b').unwrap() as u32;
        assert_eq!(sources.position(file, b), (2, 1));
    }
}
