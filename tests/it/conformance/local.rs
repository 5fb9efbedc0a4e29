//! The local engine, as whoever runs the tests and as an ordinary user.

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_keeps_every_promise() {
    let dir = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    super::passes(super::open("local", dir.path(), &[]).await, 40).await;
}

#[test]
fn for_an_ordinary_user_too() {
    crate::engine::ordinary_user::run(&["conformance::local::the_engine"], None, "");
}
