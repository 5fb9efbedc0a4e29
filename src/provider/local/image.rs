//! The images of sandboxes: found or built, as the lock has them, and told of while they come.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Local, map};
use crate::build::{self, Event};
use crate::engine::OciImage;
use crate::image::{Digest, Hold, Progress};
use crate::model::Image;
use crate::provider::{Images, ProviderError, Say, base};
use crate::secret::SecretValue;

/// How often is told how much of an image has come. What takes less is not told of.
const TELL: Duration = Duration::from_secs(1);

impl Local {
    fn pins(&self) -> BTreeMap<String, String> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The image that a sandbox is made from, if it is made from one. While the second value lives, nobody removes it.
    pub(super) async fn image(
        &self,
        image: &Image,
        secrets: &BTreeMap<String, SecretValue>,
        say: Say<'_>,
    ) -> Result<Option<(OciImage, Hold)>, ProviderError> {
        let pulling = Pulling::new(say);
        let pins = self.pins();
        if let Some(reference) = map::image(image, |reference| pins.get(reference).cloned())? {
            let found = self.engine.image(&reference, false, &|progress| pulling.hear(progress)).await;
            return found.map(Some).map_err(map::error);
        }
        let base;
        let (context, file, sha256) = match image {
            Image::Build { context, dockerfile, sha256 } => {
                (context.0.as_path(), dockerfile.as_deref(), sha256)
            }
            Image::Base(name) => {
                base = base::context(name)?;
                (base.0.path(), None, &base.1)
            }
            Image::Host | Image::Oci(_) | Image::Snapshot(_) => return Ok(None),
        };
        let secrets = secrets.iter().map(|(id, value)| (id.clone(), value.expose().into())).collect();
        let (sha256, pins, secrets) = (Some(sha256.as_str()), &pins, &secrets);
        let request = build::Request { context, file, sha256, name: None, pins, secrets };
        let hear = |event: Event<'_>| match event {
            Event::Pull(progress) => pulling.hear(progress),
            Event::Begin(at) => say(&format!("[{}/{}] {}", at.number, at.of, at.text)),
            // A failure shows its end.
            Event::Output(_) => {}
            Event::Done { position, cached, took } => {
                let how = if cached { "cached".to_owned() } else { format!("{:.1} s", took.as_secs_f64()) };
                say(&format!("[{}/{}] {how}", position.number, position.of));
            }
        };
        build::ensure(&self.engine, &request, &hear).await.map(Some).map_err(map::build_error)
    }
}

/// Layers on their way, told of together.
struct Pulling<'a> {
    say: Say<'a>,
    coming: Mutex<Coming>,
}

struct Coming {
    layers: BTreeMap<Digest, (u64, u64)>,
    told: Instant,
}

impl<'a> Pulling<'a> {
    fn new(say: Say<'a>) -> Self {
        Self { say, coming: Mutex::new(Coming { layers: BTreeMap::new(), told: Instant::now() }) }
    }

    fn hear(&self, progress: Progress) {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        coming.layers.insert(progress.layer, (progress.done, progress.size));
        if coming.told.elapsed() < TELL {
            return;
        }
        coming.told = Instant::now();
        let sum = |of: fn(&(u64, u64)) -> u64| coming.layers.values().map(of).sum::<u64>() as f64 / 1048576.0;
        (self.say)(&format!("pulling: {:.1} of {:.1} MiB", sum(|(done, _)| *done), sum(|(_, size)| *size)));
    }
}

#[async_trait]
impl Images for Local {
    fn pin(&self, digests: BTreeMap<String, String>) {
        *self.pins.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }

    fn sources(&self, image: &Image) -> Result<Vec<String>, ProviderError> {
        let of = |context: &Path, file: Option<&str>| {
            let images = build::images_of(context, file).map_err(map::build_error)?;
            Ok(images.into_iter().collect())
        };
        match image {
            Image::Oci(reference) if !reference.contains('@') && Image::file(reference).is_none() => {
                Ok(vec![reference.clone()])
            }
            Image::Build { context, dockerfile, .. } => of(&context.0, dockerfile.as_deref()),
            Image::Base(name) => of(base::context(name)?.0.path(), None),
            Image::Host | Image::Oci(_) | Image::Snapshot(_) => Ok(Vec::new()),
        }
    }

    async fn digest(&self, reference: &str) -> Result<Option<String>, ProviderError> {
        match self.pins().remove(reference) {
            Some(digest) => Ok(Some(digest)),
            None => self.engine.image_digest(&map::reference(reference)?).map_err(map::error),
        }
    }

    async fn bring(
        &self,
        image: &Image,
        secrets: &BTreeMap<String, SecretValue>,
        say: Say<'_>,
    ) -> Result<(), ProviderError> {
        self.image(image, secrets, say).await.map(drop)
    }
}
