//! What a rank had in memory when it was killed in the middle of a save.

use std::path::Path;

use serde_json::Value;

use crate::tool::on;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");

/// Trains 60 steps on two ranks, no save of which is left out for a newer one. Both stop in the first attempt before the first put of the save of step 40, and rank 1
/// is killed there.
fn train(folder: &Path, memory: &str) -> Vec<Value> {
    let paused = folder.join("paused");
    let paused = paused.display();
    let script = format!(
        r#"[ "$TORCHELASTIC_RESTART_COUNT" = 0 ] && export LASTGOOD_DEMO_PAUSE=40:0
        '{PROGRAM}' __demo-rank --rest-ms 0 --steps 60 --every 20 --digest-every 60 | while read -r line; do
            echo "$line"
            case "$line" in *paused*)
                touch '{paused}'.$RANK
                if [ "$RANK" = 1 ]; then
                    until [ -e '{paused}'.0 ]; do sleep 0.1; done
                    sleep 2
                    kill -9 $$
                fi;;
            esac
        done"#
    );
    let args = ["run", "--json", "--ranks", "2", "--memory", memory, "--", "sh", "-c", &script];
    on(folder, &args).exits(0).json()
}

fn of<'e>(events: &'e [Value], kind: &'e str) -> impl Iterator<Item = &'e Value> {
    events.iter().filter(move |event| event["event"] == kind)
}

fn digest(events: &[Value]) -> String {
    let lines = of(events, "line").filter_map(|event| event["text"].as_str());
    let done = lines.filter(|line| line.contains("\"digest\"")).last().unwrap();
    let (_, message) = done.split_once(' ').unwrap();
    let message: Value = serde_json::from_str(message).unwrap();
    message["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_save_that_was_in_memory_alone_is_completed_and_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let events = train(folder.path(), "on");
    let completed: Vec<_> = of(&events, "completed").collect();
    assert_eq!(completed.len(), 1, "{events:?}");
    assert_eq!(completed[0]["step"], 40);
    let starts: Vec<_> = of(&events, "started").map(|event| &event["from"]["step"]).collect();
    assert_eq!(starts, [&Value::Null, &Value::from(40)]);
    on(folder.path(), &["verify"]).exits(0);
    let log = on(folder.path(), &["log"]).exits(0).out;
    assert!(log.contains("supervisor"), "{log}");

    let other = tempfile::tempdir().unwrap();
    let without = train(other.path(), "off");
    assert_eq!(of(&without, "completed").count(), 0);
    let starts: Vec<_> = of(&without, "started").map(|event| &event["from"]["step"]).collect();
    assert_eq!(starts, [&Value::Null, &Value::from(20)]);
    assert_eq!(digest(&events), digest(&without));
}
