//! Kubernetes, by a cluster of its own.

use std::collections::BTreeSet;

use futures::{StreamExt as _, stream};
use pocketenv::app::conformance::{CaseResult, cases};
use pocketenv::model::Image;

use crate::kubernetes::support::{Cluster, IMAGE};

fn image() -> Image {
    Image::Oci(IMAGE.to_owned())
}

/// Tries the promises of several groups at once: most of the time a pod is waited for that goes.
async fn kept(cluster: &Cluster, groups: impl IntoIterator<Item = String>) -> usize {
    let reports = stream::iter(groups).map(async |group| {
        let report = super::kit_with(cluster.provider().await, image(), Some(&group)).await;
        assert!(report.passed, "{group}: {report:#?}");
        let tried = report.cases.iter().filter(|case| case.result == CaseResult::Passed).count();
        assert!(tried > 0, "{group}: {report:#?}");
        tried
    });
    let tried = reports.buffer_unordered(4).fold(0, async |all, tried| all + tried).await;
    assert_eq!(cluster.inventory(), Vec::<String>::new());
    tried
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_keeps_every_promise() {
    let Some(cluster) = Cluster::start() else { return };
    let groups = cases().filter_map(|case| Some(format!("{}/", case.name.split_once('/')?.0)));
    // Of these the sheet offers nothing.
    let groups: BTreeSet<String> = groups.filter(|group| group != "snapshots/").collect();
    let tried = kept(&cluster, groups).await;
    assert!(tried >= 52, "only {tried} cases were tried");
}

/// Of the promises, those whose names have one of these in them.
pub async fn keeps(cluster: &Cluster, promises: &[&str]) {
    kept(cluster, promises.iter().map(|promise| (*promise).to_owned())).await;
}
