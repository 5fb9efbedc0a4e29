//! Docker, with a daemon of its own.

use pocketenv::model::Image;

#[tokio::test(flavor = "multi_thread")]
async fn docker_keeps_every_promise() {
    let Some(daemon) = crate::docker::support::Daemon::start() else { return };
    let image = Image::Oci(crate::docker::support::IMAGE.to_owned());
    super::passes_with(daemon.provider().await, image, 54).await;
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}
