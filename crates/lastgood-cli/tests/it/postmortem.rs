//! `lastgood postmortem` on a demo whose ranks were killed.

use std::fs;

use crate::json::{documented, keys};
use crate::tool::on;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");

#[test]
fn an_incident_is_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let args = ["demo", "--kills", "2", "--seed", "3", "--steps", "30", "--ranks", "2"];
    on(folder, &args).exits(0);
    let to = folder.join("incident.html");
    let to = to.to_str().unwrap();
    let asked = ["postmortem", "--run", "demo", "--attempt", "2", "--to", to, "--json"];
    let said = on(folder, &asked).exits(0).json().pop().unwrap();
    assert_eq!(keys(&said), documented("postmortem"));
    assert_eq!(said["attempt"], 2);
    let (lost, again) = (said["lost"].as_u64().unwrap(), said["done_again"].as_u64().unwrap());
    assert_eq!(lost, again, "everything that was lost was done again: {said}");
    assert!(said["differs"].is_null() || said["differs"] == false, "{said}");
    let page = fs::read_to_string(to).unwrap();
    for words in ["<svg", "Went on from", "attempt 2", "attempt 3", "taken: the newest", "</html>"]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
    for outside in ["http://", "https://", "src=", "href=", "<script", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}: the page needs nothing else");
    }
    // It is not overwritten by chance.
    on(folder, &asked).exits(5);
    on(folder, &[&asked[..], &["--force"]].concat()).exits(0);
    // The certificate goes into it, if it is of this run.
    let (key, certificate) = (folder.join("key.pem"), folder.join("demo.json"));
    let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
    on(folder, &["key", "new", "--to", key]).exits(0);
    let prove = ["prove", "--run", "demo", "--key", key, "--certificate", certificate];
    let job = ["--", PROGRAM, "__demo-rank", "--steps", "30", "--every", "5"];
    on(folder, &[&prove[..], &job].concat()).exits(0);
    on(folder, &[&asked[..], &["--force", "--certificate", certificate]].concat()).exits(0);
    let page = fs::read_to_string(to).unwrap();
    assert!(page.contains("at level D2") && page.contains("Signed by"), "{page}");
    // An attempt that nothing followed is no incident.
    let last = ["postmortem", "--run", "demo", "--attempt", "9", "--to", "never.html"];
    let none = on(folder, &last).exits(4);
    assert!(none.err.contains("was not followed"), "{}", none.err);
}

#[test]
fn what_people_wrote_is_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let args = ["demo", "--kills", "1", "--seed", "3", "--steps", "20", "--ranks", "2"];
    on(folder, &args).exits(0);
    let reason = "<script>alert('x')</script>";
    on(folder, &["mark", "good", "--run", "demo", "--at", "5", "--reason", reason]).exits(0);
    let to = folder.join("incident.html");
    on(folder, &["postmortem", "--run", "demo", "--to", to.to_str().unwrap()]).exits(0);
    let page = fs::read_to_string(to).unwrap();
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("&lt;script&gt;"), "{page}");
}
