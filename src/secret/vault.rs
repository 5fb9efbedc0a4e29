//! The sealed vault: values that Pocketenv keeps itself, encrypted with a key that lies beside the store and not in it.
//!
//! A value is sealed with XChaCha20-Poly1305 (RFC 8439, draft-irtf-cfrg-xchacha) under a fresh nonce, bound to its name and to the key, so that no
//! sealed value can be passed off as another. Whoever has the store alone has nothing; whoever has the key file too has everything.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use secrecy::zeroize::Zeroizing;
use sha2::Sha256;

use super::SecretValue;

/// The variable that holds the key where there is no file for it: 64 hexadecimal digits.
pub const VAULT_KEY_VARIABLE: &str = "POCKETENV_VAULT_KEY";

/// What a key file begins with.
const HEADER: &str = "pocketenv-vault-key-1 ";
/// A key file is not larger than this.
const MAX_KEY_FILE: u64 = 4096;
/// The form of a sealed value: this byte, eight that name the key, the nonce, the sealed bytes with their tag.
const FORM: u8 = 1;
const KEY_ID: usize = 8;
const NONCE: usize = 24;

/// Why a value cannot be sealed or opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VaultError {
    /// There is no such value.
    #[error("the vault has no `{0}`; `pocketenv secret set {0}` puts it there")]
    Missing(String),
    /// There are sealed values and no key.
    #[error(
        "the key of the vault is gone: {} is not there; put it back, or set {VAULT_KEY_VARIABLE}, or remove what was sealed with \
         it (`pocketenv secret rm NAME`) and seal it anew",
        .0.display()
    )]
    NoKey(PathBuf),
    /// Others can read the key.
    #[error("the key of the vault can be read by others: `chmod 600 {}`", .0.display())]
    Exposed(PathBuf),
    /// The key file cannot be read or made.
    #[error("cannot {doing} the key of the vault, {}", path.display())]
    Io {
        /// What was attempted, as it follows "cannot".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// What should be the key is none.
    #[error("{0} holds no key of a vault; expected {expected}", expected = "64 hexadecimal digits")]
    NotAKey(String),
    /// It was sealed with another key.
    #[error(
        "`{0}` was sealed with another key than the one in use; put that key back, or seal the value anew with `pocketenv secret set {0}`"
    )]
    WrongKey(String),
    /// The sealed bytes were changed, or belong to another name.
    #[error("what is sealed as `{0}` is damaged; seal the value anew with `pocketenv secret set {0}`")]
    Damaged(String),
    /// No random bytes could be had.
    #[error("the system gives no random bytes: {0}")]
    NoRandom(String),
}

/// A sealed value: of no use without the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The key of a vault. It is wiped from memory when dropped.
#[derive(Clone)]
pub struct VaultKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

impl VaultKey {
    /// The key: from the variable if that is set, else from the file. `None` if there is neither.
    ///
    /// # Errors
    /// A key that is none, a file that others can read, or what the system answers.
    pub fn find(vars: &BTreeMap<String, String>, file: &Path) -> Result<Option<Self>, VaultError> {
        if let Some(text) = vars.get(VAULT_KEY_VARIABLE).filter(|text| !text.is_empty()) {
            return parse(text, VAULT_KEY_VARIABLE).map(Some);
        }
        read(file)
    }

    /// As [`Self::find`], but makes the file if there is neither.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_or_make(vars: &BTreeMap<String, String>, file: &Path) -> Result<Self, VaultError> {
        match Self::find(vars, file)? {
            Some(key) => Ok(key),
            None => make(file),
        }
    }

    /// Seals a value under its name.
    ///
    /// # Errors
    /// Only if the system gives no random bytes.
    pub fn seal(&self, name: &str, value: &SecretValue) -> Result<Sealed, VaultError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| VaultError::NoRandom(error.to_string()))?;
        let id = self.id();
        let bound = bound(&id, name);
        let payload = Payload { msg: value.expose().as_bytes(), aad: &bound };
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), payload);
        // Provably impossible: a value is far from the 256 GiB that one nonce can seal.
        let sealed = sealed.map_err(|_| VaultError::Damaged(name.to_owned()))?;
        Ok(Sealed([&[FORM][..], &id, &nonce, &sealed].concat()))
    }

    /// Opens what was sealed under a name.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`] or [`VaultError::Damaged`].
    pub fn open(&self, name: &str, sealed: &Sealed) -> Result<SecretValue, VaultError> {
        let damaged = || VaultError::Damaged(name.to_owned());
        let (form, rest) = sealed.0.split_first().ok_or_else(damaged)?;
        let (id, rest) = rest.split_first_chunk::<KEY_ID>().ok_or_else(damaged)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or_else(damaged)?;
        if *form != FORM {
            return Err(damaged());
        }
        if *id != self.id() {
            return Err(VaultError::WrongKey(name.to_owned()));
        }
        let bound = bound(id, name);
        let payload = Payload { msg: sealed, aad: &bound };
        let opened = self.cipher().decrypt(&XNonce::from(*nonce), payload).map_err(|_| damaged())?;
        let opened = Zeroizing::new(opened);
        let text = std::str::from_utf8(&opened).map_err(|_| damaged())?;
        Ok(SecretValue::new(text))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&(*self.0).into())
    }

    /// Names the key without telling anything about it.
    fn id(&self) -> [u8; KEY_ID] {
        // Provably impossible: HMAC takes a key of any length.
        #[allow(clippy::expect_used)]
        let mut mac =
            <Hmac<Sha256> as Mac>::new_from_slice(&*self.0).expect("HMAC takes a key of any length");
        mac.update(b"pocketenv vault key id");
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&mac.finalize().into_bytes()[..KEY_ID]);
        id
    }
}

/// What a sealed value is bound to.
fn bound(id: &[u8; KEY_ID], name: &str) -> Vec<u8> {
    [b"pocketenv vault 1\0", &id[..], name.as_bytes()].concat()
}

fn parse(text: &str, whose: &str) -> Result<VaultKey, VaultError> {
    let not_a_key = || VaultError::NotAKey(whose.to_owned());
    let text = text.trim();
    let digits = text.strip_prefix(HEADER).unwrap_or(text).trim();
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, &mut *key).map_err(|_| not_a_key())?;
    Ok(VaultKey(key))
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> VaultError + 'a {
    move |source| VaultError::Io { doing, path: path.to_owned(), source: Arc::new(source) }
}

fn read(path: &Path) -> Result<Option<VaultKey>, VaultError> {
    // Without blocking, so that a FIFO cannot make us wait for ever.
    let opened =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let metadata = file.metadata().map_err(failed("read", path))?;
    if !metadata.is_file() {
        return Err(VaultError::NotAKey(path.display().to_string()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(VaultError::Exposed(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(failed("read", path))?;
    parse(&text, &path.display().to_string()).map(Some)
}

/// Makes a whole key under a temporary name and links it into place, so that nobody ever sees half of one. If another process was faster, its key
/// is the key.
fn make(path: &Path) -> Result<VaultKey, VaultError> {
    let failed = failed("make", path);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(&failed)?;
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).map_err(|error| VaultError::NoRandom(error.to_string()))?;
    // Temporary files are of mode 0600.
    let mut file = tempfile::Builder::new().prefix(".new-key-").tempfile_in(dir).map_err(&failed)?;
    let digits = Zeroizing::new(hex::encode(*key));
    let written = file.write_all(format!("{HEADER}{}\n", *digits).as_bytes());
    written.and_then(|()| file.as_file().sync_all()).map_err(&failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return read(path)?.ok_or_else(|| VaultError::NoKey(path.to_owned()));
        }
        Err(error) => return Err(failed(error.error)),
    }
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(&failed)?;
    Ok(VaultKey(key))
}

/// What is sealed, and the key if there is one: where `vault: NAME` of a manifest is looked up.
#[derive(Debug, Default)]
pub struct Vault {
    key: Option<VaultKey>,
    key_file: PathBuf,
    sealed: BTreeMap<String, Sealed>,
}

impl Vault {
    /// A vault with what is sealed in it, by name.
    pub fn new(key: Option<VaultKey>, key_file: PathBuf, sealed: BTreeMap<String, Sealed>) -> Self {
        Self { key, key_file, sealed }
    }

    /// Opens one value.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open(&self, name: &str) -> Result<SecretValue, VaultError> {
        let sealed = self.sealed.get(name).ok_or_else(|| VaultError::Missing(name.to_owned()))?;
        let key = self.key.as_ref().ok_or_else(|| VaultError::NoKey(self.key_file.clone()))?;
        key.open(name, sealed)
    }

    /// Whether something is sealed under this name.
    pub fn holds(&self, name: &str) -> bool {
        self.sealed.contains_key(name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(byte: u8) -> VaultKey {
        VaultKey(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_name_only() {
        let value = SecretValue::new("hunter2 ünï");
        let sealed = key(1).seal("db", &value).unwrap();
        assert_eq!(key(1).open("db", &sealed).unwrap().expose(), "hunter2 ünï");
        assert_ne!(sealed, key(1).seal("db", &value).unwrap(), "a nonce was used twice");
        assert!(matches!(key(1).open("dc", &sealed), Err(VaultError::Damaged(_))));
        assert!(matches!(key(2).open("db", &sealed), Err(VaultError::WrongKey(_))));
        for at in 0..sealed.0.len() {
            let mut changed = sealed.clone();
            changed.0[at] ^= 1;
            assert!(key(1).open("db", &changed).is_err(), "byte {at} was changed");
            assert!(key(1).open("db", &Sealed(sealed.0[..at].to_vec())).is_err(), "cut at {at}");
        }
        let text = format!("{sealed:?} {:?}", key(1));
        assert!(!text.contains("0101"), "{text}");
    }

    #[test]
    fn a_key_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/vault.key");
        let vars = BTreeMap::new();
        assert!(VaultKey::find(&vars, &path).unwrap().is_none());
        let made: Vec<_> = std::thread::scope(|scope| {
            let make = || VaultKey::find_or_make(&vars, &path).unwrap().0;
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.iter().all(|key| *key == made[0]), "several keys were made");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "something was left");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(VaultKey::find(&vars, &path), Err(VaultError::Exposed(_))));
    }

    #[test]
    fn a_key_of_the_environment_counts_first_and_has_to_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.key");
        VaultKey::find_or_make(&BTreeMap::new(), &path).unwrap();
        let with = |text: &str| BTreeMap::from([(VAULT_KEY_VARIABLE.to_owned(), text.to_owned())]);
        let found = VaultKey::find(&with(&"07".repeat(32)), &path).unwrap().unwrap();
        assert_eq!(*found.0, [7; 32]);
        for wrong in ["hunter2", &"07".repeat(31), &"0g".repeat(32)] {
            let error = VaultKey::find(&with(wrong), &path).unwrap_err();
            assert!(!error.to_string().contains(wrong), "{error}");
        }
        std::fs::write(&path, "").unwrap();
        assert!(matches!(VaultKey::find(&BTreeMap::new(), &path), Err(VaultError::NotAKey(_))));
    }
}
