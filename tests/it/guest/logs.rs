//! Logs.

use std::sync::{Arc, Mutex};

use pocketenv::guest::{LogOptions, logs};
use pocketenv::model::{Quantity, RestartPolicy, ServiceSpec};

use super::room::{Room, eventually};
use super::service::{script, start};

async fn read(room: &Room, services: &[&str], tail: Option<u32>) -> Vec<String> {
    let mut lines = Vec::new();
    let services: Vec<String> = services.iter().map(|&name| name.to_owned()).collect();
    logs(room, &services, LogOptions { follow: false, tail }, &mut |line| {
        lines.push(format!("{}: {}", line.service, String::from_utf8_lossy(line.text)));
    })
    .await
    .unwrap();
    lines
}

#[tokio::test]
async fn all_and_the_last_lines_of_several_services() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        for name in ["a", "b"] {
            let text = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo \"line $i\"; done; printf end; exec sleep 1000";
            start(
                &room,
                name,
                &ServiceSpec {
                    log_max_size: Quantity::from_bytes(8 << 10),
                    log_max_files: 99,
                    ..script(text)
                },
            )
            .await;
        }
        eventually("both wrote", || async {
            let last = read(&room, &["a", "b"], Some(1)).await;
            last.contains(&"a: end".to_owned()) && last.contains(&"b: end".to_owned())
        })
        .await;
        let all = read(&room, &["a"], None).await;
        assert_eq!(all.len(), 5001);
        assert_eq!((all[0].as_str(), all[4999].as_str()), ("a: line 1", "a: line 5000"));
        let unknown = logs(&room, &["nobody".to_owned()], LogOptions::default(), &mut |_| {}).await;
        assert!(unknown.unwrap_err().to_string().contains("no service nobody"));
    }
}

#[tokio::test]
async fn following_survives_rotation_without_loss_or_repetition() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let text = "while [ ! -e \"$GO\" ]; do sleep 0.05; done; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"line $i\"; done";
        let mut service = script(text);
        service.env.insert("GO".to_owned(), room.at("go"));
        service.restart = RestartPolicy::Never;
        service.log_max_size = Quantity::from_bytes(16 << 10);
        service.log_max_files = 50;
        start(&room, "chatty", &service).await;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let names = ["chatty".to_owned()];
        let options = LogOptions { follow: true, tail: None };
        let mut give = |line: pocketenv::guest::LogLine<'_>| {
            sink.lock().unwrap().push(String::from_utf8(line.text.to_vec()).unwrap());
        };
        let following = logs(&room, &names, options, &mut give);
        let complete = async {
            std::fs::write(room.at("go"), "").unwrap();
            eventually("the last line came", || async {
                lines.lock().unwrap().last().is_some_and(|line| line == "line 20000")
            })
            .await;
        };
        tokio::select! {
            ended = following => panic!("following ended: {ended:?}"),
            () = complete => {}
        }
        let expected: Vec<String> = (1..=20000).map(|number| format!("line {number}")).collect();
        let lines = lines.lock().unwrap();
        assert!(*lines == expected, "{} lines instead of 20000", lines.len());
    }
}
