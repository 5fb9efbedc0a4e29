//! Docker, with a daemon of its own.

use pocketenv::model::Image;

use super::faults::{Proxy, Row, Upstream, faults};

#[tokio::test(flavor = "multi_thread")]
async fn docker_keeps_every_promise() {
    let Some(daemon) = crate::docker::support::Daemon::start() else { return };
    let image = Image::Oci(crate::docker::support::IMAGE.to_owned());
    super::passes_with(daemon.provider().await, image, 41).await;
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

const ROW: Row = Row {
    list: ("GET", "/containers/json"),
    create: ("POST", "/containers/create"),
    exec: Some(("POST", "/start")),
    // Docker does not say how long.
    retry_after: false,
};

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_answers_that_break_off() {
    let Some(daemon) = crate::docker::support::Daemon::start() else { return };
    let proxy = Proxy::start(Upstream::Unix(daemon.socket())).await;
    let host = format!("tcp://{}", proxy.address);
    let provider = super::open("docker", daemon.dir.path(), &[("host", &host)]).await;
    let image = Image::Oci(crate::docker::support::IMAGE.to_owned());
    let wrong = faults(&*provider, &*daemon.provider().await, &proxy, &ROW, image).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}
