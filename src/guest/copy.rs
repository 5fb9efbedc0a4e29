//! Copying between the host and sandboxes, and between sandboxes: modes, links, empty directories and every byte. What came by more than pipes,
//! and what came out of a sandbox, is verified by its hash.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tokio_util::io::SyncIoBridge;

use super::archive::{Member, Source, io_error, send};
use super::script::{SHORT, Tail, feed_all, one_line, run, script};
use super::tree::{TreeKind, file_sha256, scan};
use crate::provider::{ExecIo, Guest, GuestError, Input, Output, Sink};

/// Copies a file or directory of the host into a sandbox and gives the path it got there. `to` that is a directory, or ends with a slash, takes it
/// under its own name. What ignore files of a directory exclude stays here. `user` writes it; `None` for the sandbox's default user.
///
/// # Errors
/// [`GuestError::Io`] if the host's files cannot be read, [`GuestError::Failed`] if they cannot be written inside, [`GuestError::Protocol`] if what
/// arrived is not what was sent.
pub async fn copy_in(
    guest: &dyn Guest,
    from: &Path,
    to: &str,
    user: Option<&str>,
) -> Result<String, GuestError> {
    one_line("the path", to)?;
    let what = format!("copying {} to {to}", from.display());
    let source = from.to_owned();
    let verified = !guest.has_pipes();
    let (kind, members) = tokio::task::spawn_blocking(move || members(&source, verified))
        .await
        .map_err(|error| io_error(&what, io::Error::other(error)))?
        .map_err(|source| io_error(&format!("reading {}", from.display()), source))?;
    let name = file_name(from)?;
    let sent: Vec<(String, String)> = members
        .iter()
        .filter_map(|member| match &member.data {
            Source::File { sha256, .. } => Some((member.name.clone(), sha256.clone()?)),
            _ => None,
        })
        .collect();
    for member in &members {
        one_line("the path", &member.name)?;
    }
    let mut command = script!("copy_in").command([to, &name, kind]);
    command.user = user.map(str::to_owned);
    let output = send(guest, &what, &command, members).await?;
    if !output.status.success() {
        return Err(GuestError::Failed {
            what,
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        });
    }
    let arrived = String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned();
    if !verified {
        return Ok(arrived);
    }
    if kind == "directory" {
        verify(guest, &what, &arrived, &sent, user).await?;
    } else {
        let (folder, name) = arrived.rsplit_once('/').unwrap_or((".", &arrived));
        let sent: Vec<_> = sent.into_iter().map(|(_, sha256)| (name.to_owned(), sha256)).collect();
        verify(guest, &what, if folder.is_empty() { "/" } else { folder }, &sent, user).await?;
    }
    Ok(arrived)
}

/// Copies a file or directory of a sandbox to the host and gives the path it got there. `to` that is a directory, or ends with a slash, takes it under
/// its own name. Nothing is written outside of it, whatever the sandbox sends.
///
/// # Errors
/// As [`copy_in`]; [`GuestError::Protocol`] also for a file that changed while it was copied.
pub async fn copy_out(
    guest: &dyn Guest,
    from: &str,
    to: &Path,
    user: Option<&str>,
) -> Result<PathBuf, GuestError> {
    let what = format!("copying {from} to {}", to.display());
    let origin = Origin::find(guest, &what, from, user).await?;
    let into = to.is_dir() || to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = if into { to.join(&origin.name) } else { to.to_owned() };

    let (mut writer, reader) = tokio::io::duplex(256 * 1024);
    let (destination, name, directory) = (target.clone(), origin.name.clone(), origin.directory);
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut reader = SyncIoBridge::new(reader);
        let result = unpack(&mut reader, &destination, &name, directory);
        // Read to the end, so that the sandbox never blocks on a reader that has what it wants.
        let _ = io::copy(&mut reader, &mut io::sink());
        result
    });
    origin.pack(guest, &what, &mut writer).await?;
    drop(writer);
    let files = unpacking
        .await
        .map_err(|error| io_error(&what, io::Error::other(error)))?
        .map_err(|source| io_error(&what, source))?;
    verify(guest, &what, &origin.folder, &files, user).await?;
    Ok(target)
}

/// One end of a copy between sandboxes.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The sandbox.
    pub guest: &'a dyn Guest,
    /// The path inside.
    pub path: &'a str,
    /// Who reads or writes; `None` for the sandbox's default user.
    pub user: Option<&'a str>,
}

/// Copies a file or directory of one sandbox into another without touching the host's disk, and gives the path it got there.
///
/// # Errors
/// As [`copy_in`].
pub async fn copy_between(from: &End<'_>, to: &End<'_>) -> Result<String, GuestError> {
    one_line("the path", to.path)?;
    let what = format!("copying {} to {}", from.path, to.path);
    let origin = Origin::find(from.guest, &what, from.path, from.user).await?;
    let kind = if origin.directory { "directory" } else { "file" };
    let mut command = script!("copy_in").command([to.path, &origin.name, kind]);
    command.user = to.user.map(str::to_owned);
    let (mut writer, mut reader) = tokio::io::duplex(256 * 1024);
    // Each side owns its end: when one fails, the other sees it closed and ends too.
    let packing = {
        let (origin, what) = (&origin, &what);
        async move { origin.pack(from.guest, what, &mut writer).await }
    };
    let unpacking = {
        let (command, what) = (&command, &what);
        async move { feed_all(to.guest, what, command, &mut reader).await }
    };
    let (packed, arrived) = tokio::join!(packing, unpacking);
    let arrived = arrived?;
    packed?;
    Ok(String::from_utf8_lossy(&arrived.stdout).trim_end_matches('\n').to_owned())
}

/// What is copied out of a sandbox.
struct Origin {
    directory: bool,
    /// The directory itself, or the file's parent.
    folder: String,
    name: String,
    user: Option<String>,
}

impl Origin {
    async fn find(guest: &dyn Guest, what: &str, path: &str, user: Option<&str>) -> Result<Self, GuestError> {
        one_line("the path", path)?;
        let mut command = script!("copy_out").command(["kind", path]);
        command.user = user.map(str::to_owned);
        command.timeout = Some(SHORT);
        let output = run(guest, what, &command, 0).await?;
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
        let name = if matches!(name, "" | "." | "..") { "root" } else { name }.to_owned();
        let user = user.map(str::to_owned);
        match output.stdout.as_slice() {
            b"directory\n" => Ok(Self { directory: true, folder: path.to_owned(), name, user }),
            b"file\n" => {
                let folder = if parent.is_empty() { "/" } else { parent }.to_owned();
                Ok(Self { directory: false, folder, name, user })
            }
            b"missing\n" => Err(GuestError::Unsupported(format!("{what}: {path} does not exist"))),
            b"other\n" => {
                Err(GuestError::Unsupported(format!("{what}: {path} is neither a file nor a directory")))
            }
            other => Err(GuestError::Protocol {
                what: what.to_owned(),
                message: String::from_utf8_lossy(other).into_owned(),
            }),
        }
    }

    async fn pack(
        &self,
        guest: &dyn Guest,
        what: &str,
        to: &mut (dyn tokio::io::AsyncWrite + Send + Unpin),
    ) -> Result<(), GuestError> {
        let mut command = if self.directory {
            script!("copy_out").command(["directory", &self.folder])
        } else {
            script!("copy_out").command(["file", &self.folder, &self.name])
        };
        command.user.clone_from(&self.user);
        let mut stderr = Tail::new(4096);
        let io = ExecIo {
            stdin: Input::Null,
            stdout: Output::Writer(to),
            stderr: Output::Writer(&mut Sink(|data: &[u8]| stderr.push(data))),
        };
        let status = guest.exec(&command, io).await?;
        if status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&stderr.into_bytes()).trim_end().to_owned();
        Err(GuestError::Failed { what: what.to_owned(), status, output })
    }
}

fn file_name(path: &Path) -> Result<String, GuestError> {
    // `.` and `..` have a name too, once they are looked up.
    let real = std::fs::canonicalize(path)
        .map_err(|source| io_error(&format!("reading {}", path.display()), source))?;
    let name = path.file_name().or_else(|| real.file_name());
    match name.map(|name| name.to_str()) {
        None => Ok("root".to_owned()),
        Some(Some(name)) => Ok(name.to_owned()),
        Some(None) => Err(GuestError::Unsupported(format!("{}: the name is not UTF-8", path.display()))),
    }
}

/// What is sent of a host path; a single file under its own name, and with its hash only if somebody verifies it.
fn members(from: &Path, verified: bool) -> io::Result<(&'static str, Vec<Member>)> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(from)?;
    if metadata.is_file() {
        let sha256 = if verified { Some(file_sha256(from)?.0) } else { None };
        let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mode = metadata.permissions().mode() & 0o7777;
        let data = Source::File { path: from.to_owned(), sha256 };
        return Ok(("file", vec![Member { name, mode, data }]));
    }
    if !metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a directory"));
    }
    let members = scan(from).map_err(io::Error::other)?.into_iter().map(|entry| {
        let path = from.join(&entry.path);
        let (mode, data) = match entry.kind {
            TreeKind::File { sha256, mode, .. } => (mode, Source::File { path, sha256: Some(sha256) }),
            TreeKind::Dir { mode } => (mode, Source::Directory),
            TreeKind::Symlink { target } => (0o777, Source::Link { target }),
        };
        Member { name: entry.path, mode, data }
    });
    Ok(("directory", members.collect()))
}

/// Unpacks what a sandbox sent; gives names, relative to what was packed, and hashes of the files. The sandbox is not trusted: the tar crate refuses
/// to leave the directory, also through links, and drops set-user-id bits.
fn unpack(
    from: &mut dyn Read,
    target: &Path,
    name: &str,
    directory: bool,
) -> io::Result<Vec<(String, String)>> {
    let mut archive = tar::Archive::new(from);
    let mut files = Vec::new();
    if directory {
        std::fs::create_dir_all(target)?;
        // Modes of directories last: a read-only one would refuse its own files.
        let mut directories = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            if entry.header().entry_type().is_dir() {
                directories.push(entry);
                continue;
            }
            if !entry.unpack_in(target)? {
                return Err(io::Error::other(format!("{} leads outside", path.display())));
            }
            if entry.header().entry_type().is_file() {
                let relative = path.strip_prefix(".").unwrap_or(&path);
                let (sha256, _) = file_sha256(&target.join(relative))?;
                files.push((relative.to_string_lossy().into_owned(), sha256));
            }
        }
        directories.sort_by_key(|entry| std::cmp::Reverse(entry.path_bytes().len()));
        for mut directory in directories {
            directory.unpack_in(target)?;
        }
        return Ok(files);
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut staged = tempfile::NamedTempFile::new_in(folder)?;
    let mut entries = archive.entries()?;
    let mut entry = entries.next().ok_or_else(|| io::Error::other("the sandbox sent nothing"))??;
    io::copy(&mut entry, &mut staged)?;
    staged.flush()?;
    let mode = entry.header().mode()? & 0o777;
    std::fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    files.push((name.to_owned(), file_sha256(staged.path())?.0));
    staged.persist(target).map_err(|error| error.error)?;
    Ok(files)
}

/// Compares files in `folder` inside with the hashes they should have.
async fn verify(
    guest: &dyn Guest,
    what: &str,
    folder: &str,
    files: &[(String, String)],
    user: Option<&str>,
) -> Result<(), GuestError> {
    let mut names: Vec<u8> = Vec::new();
    for (name, _) in files {
        one_line("the path", name)?;
        names.extend_from_slice(name.as_bytes());
        names.push(b'\n');
    }
    if names.is_empty() {
        return Ok(());
    }
    let mut command = script!("hashes").command([folder]);
    command.user = user.map(str::to_owned);
    let output = feed_all(guest, what, &command, &mut names.as_slice()).await?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let mut lines = answer.lines();
    for (name, sha256) in files {
        let line = lines.next().unwrap_or_default();
        if line.trim_start_matches('\\').get(..64) != Some(sha256) {
            let message = format!("{name} is not what was sent; it may have changed while it was copied");
            return Err(GuestError::Protocol { what: what.to_owned(), message });
        }
    }
    Ok(())
}
