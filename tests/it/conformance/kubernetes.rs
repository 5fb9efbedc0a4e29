//! Kubernetes, with a cluster of its own.

use pocketenv::model::Image;

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_keeps_every_promise() {
    let Some(cluster) = crate::kubernetes::support::Cluster::start() else { return };
    let image = Image::Oci(crate::kubernetes::support::IMAGE.to_owned());
    super::passes_with(cluster.provider().await, image, 52).await;
    assert_eq!(cluster.inventory(), Vec::<String>::new());
}
