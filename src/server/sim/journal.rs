//! The file that outlives the simulator: every effect, one JSON object a line, in the order it happened. It is state and history at once.
//!
//! A line counts once it is on the disk: an answer that tells of an effect waits for that, and effects that happen at once share one sync.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tokio::sync::watch;

/// Lines written at one go.
const BATCH: usize = 1024;

/// The file, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    lines: mpsc::Sender<Vec<u8>>,
    sent: u64,
    written: watch::Receiver<Written>,
}

/// How far the file has come.
#[derive(Clone, Debug, Default)]
struct Written {
    lines: u64,
    failed: Option<String>,
}

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another simulator uses it.
    #[error("{} is in use by another simulator", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A line makes no sense.
    #[error("line {line} of {} is not an effect of a simulator", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Journal {
    /// Opens or makes the file, and gives every whole line to `replay`. An unfinished last line is cut off: its answer was never given.
    pub fn open(
        path: &Path,
        mut replay: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
    ) -> Result<Self, JournalError> {
        let failed = |doing| move |source| JournalError::Io { doing, path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(JournalError::InUse { path: path.to_owned() });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        let mut reader = BufReader::new(&mut file);
        let (mut line, mut count, mut whole) = (Vec::new(), 0, 0_u64);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(failed("read"))?;
            if line.pop() != Some(b'\n') {
                break;
            }
            count += 1;
            whole += read as u64;
            replay(&line).map_err(|source| JournalError::Line {
                path: path.to_owned(),
                line: count,
                source,
            })?;
        }
        file.set_len(whole).map_err(failed("shorten"))?;
        file.seek(io::SeekFrom::End(0)).map_err(failed("read"))?;
        let (lines, receiver) = mpsc::channel();
        let (tell, written) = watch::channel(Written::default());
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write(file, &receiver, &tell))
            .map_err(failed("start a thread for"))?;
        Ok(Self { path: path.to_owned(), lines, sent: 0, written })
    }

    /// Appends a line.
    pub fn append(&mut self, line: Vec<u8>) {
        self.sent += 1;
        // The thread ends only with an error, which `receipt` tells.
        let _ = self.lines.send(line);
    }

    /// What tells when everything appended so far is on the disk.
    pub fn receipt(&self) -> Receipt {
        Receipt { lines: self.sent, written: self.written.clone() }
    }

    /// Every line on the disk.
    pub fn read(&self) -> Result<Vec<u8>, JournalError> {
        std::fs::read(&self.path).map_err(|source| JournalError::Io {
            doing: "read",
            path: self.path.clone(),
            source,
        })
    }
}

/// Tells when what was appended is on the disk.
#[derive(Clone, Debug)]
pub struct Receipt {
    lines: u64,
    written: watch::Receiver<Written>,
}

impl Receipt {
    /// Waits for it; an error if it will never be there.
    pub async fn wait(mut self) -> Result<(), String> {
        let lines = self.lines;
        let gone = || "the journal's thread has ended".to_owned();
        let state =
            self.written.wait_for(|w| w.lines >= lines || w.failed.is_some()).await.map_err(|_| gone())?;
        match &state.failed {
            Some(message) if state.lines < lines => Err(message.clone()),
            _ => Ok(()),
        }
    }
}

fn write(mut file: File, lines: &mpsc::Receiver<Vec<u8>>, tell: &watch::Sender<Written>) {
    let mut buffer = Vec::new();
    while let Ok(first) = lines.recv() {
        buffer.clear();
        let mut count = 0;
        for line in std::iter::once(first).chain(lines.try_iter().take(BATCH)) {
            buffer.extend_from_slice(&line);
            buffer.push(b'\n');
            count += 1;
        }
        if let Err(error) = file.write_all(&buffer).and_then(|()| file.sync_data()) {
            tell.send_modify(|w| w.failed = Some(format!("the journal cannot be written: {error}")));
            return;
        }
        tell.send_modify(|w| w.lines += count);
    }
}
