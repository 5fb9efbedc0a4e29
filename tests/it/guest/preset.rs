//! Steps of presets.

use std::collections::BTreeMap;

use pocketenv::guest::{ServiceDefaults, StepOutcome, forget_steps, observe, run_step};
use pocketenv::model::{Duration, PresetOutcome, PresetStep};
use pocketenv::provider::GuestError;

use super::room::Room;

pub fn step(run: &str) -> PresetStep {
    PresetStep {
        name: "a step".to_owned(),
        only_if: None,
        unless: None,
        run: run.to_owned(),
        shell: "sh".to_owned(),
        user: None,
        env: BTreeMap::new(),
        timeout: Duration::from_secs(20),
        retries: 0,
        continue_on_error: false,
    }
}

async fn run(room: &Room, step: &PresetStep) -> (Result<StepOutcome, GuestError>, String) {
    let mut output = String::new();
    let env =
        BTreeMap::from([("FROM".to_owned(), "sandbox".to_owned()), ("BOTH".to_owned(), "x".to_owned())]);
    let outcome = run_step(room, "tools", step, &env, None, &mut |text| output.push_str(text)).await;
    (outcome, output)
}

async fn remembered(room: &Room, step: &PresetStep) -> Option<PresetOutcome> {
    let seen = observe(room, &BTreeMap::new(), ServiceDefaults::default()).await.unwrap();
    seen.presets.get(&step.id()).copied()
}

#[tokio::test]
async fn a_step_runs_as_one_script_and_is_remembered_by_its_content() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let mut first = step("x=1\ncd /tmp\necho \"$x $FROM $BOTH $PWD grüße\"; echo err >&2");
        first.env.insert("BOTH".to_owned(), "step".to_owned());
        let (outcome, output) = run(&room, &first).await;
        assert_eq!(outcome.unwrap(), StepOutcome::Ran);
        assert_eq!(output, "1 sandbox step /tmp grüße\nerr\n");
        assert_eq!(remembered(&room, &first).await, Some(PresetOutcome::Done));
        assert_eq!(remembered(&room, &step("echo other")).await, None);
        forget_steps(&room, &[first.id()]).await.unwrap();
        assert_eq!(remembered(&room, &first).await, None);
        assert!(forget_steps(&room, &["../x".to_owned()]).await.is_err());
    }
}

#[tokio::test]
async fn conditions_are_asked_first() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        for (only_if, unless, ran) in [
            (Some("false\ntrue"), None, true),
            (Some("false"), None, false),
            (None, Some("exit 0"), false),
            (None, Some("exit 4"), true),
            (Some("true"), Some("true"), false),
        ] {
            let mut step = step("echo ran");
            (step.only_if, step.unless) = (only_if.map(str::to_owned), unless.map(str::to_owned));
            let (outcome, output) = run(&room, &step).await;
            assert_eq!(outcome.unwrap(), if ran { StepOutcome::Ran } else { StepOutcome::Skipped });
            assert_eq!(output == "ran\n", ran, "{step:?}");
            assert_eq!(remembered(&room, &step).await, Some(PresetOutcome::Done));
        }
    }
}

#[tokio::test]
async fn a_failed_step_says_its_name_and_last_output_and_is_not_remembered() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let failing =
            step("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done\nls /no/such\necho unreached");
        let (outcome, _) = run(&room, &failing).await;
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("\"a step\" of preset tools") && message.contains("/no/such"), "{message}");
        assert!(!message.contains("unreached") && message.len() < 6000, "{message}");
        assert_eq!(remembered(&room, &failing).await, None);

        let allowed = PresetStep { continue_on_error: true, ..step("exit 3") };
        let (outcome, _) = run(&room, &allowed).await;
        assert!(matches!(outcome, Ok(StepOutcome::FailedAllowed(why)) if why.contains("exit code 3")));
        assert_eq!(remembered(&room, &allowed).await, Some(PresetOutcome::FailedAllowed));
    }
}

#[tokio::test]
async fn a_step_is_tried_again_and_ended_in_time() {
    let Some(room) = Room::new() else { return };
    let file = room.at("tries");
    let mut flaky = step("echo x >> \"$FILE\"; [ \"$(wc -l < \"$FILE\")\" -eq 2 ]");
    flaky.env.insert("FILE".to_owned(), file);
    flaky.retries = 1;
    assert_eq!(run(&room, &flaky).await.0.unwrap(), StepOutcome::Ran);
    let slow = PresetStep { timeout: Duration::from_millis(300), ..step("sleep 60") };
    assert!(matches!(run(&room, &slow).await.0, Err(GuestError::TimedOut { .. })));
}

#[tokio::test]
async fn another_interpreter_gets_the_script_as_a_file() {
    let Some(room) = Room::new() else { return };
    let perl = PresetStep { shell: "perl -w".to_owned(), ..step("print 'it is ' . (6 * 7) . \"\\n\";") };
    if !std::path::Path::new("/usr/bin/perl").exists() {
        eprintln!("SKIPPED: no perl");
        return;
    }
    let (outcome, output) = run(&room, &perl).await;
    assert_eq!((outcome.unwrap(), output.as_str()), (StepOutcome::Ran, "it is 42\n"));
}
