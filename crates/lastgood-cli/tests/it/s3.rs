//! The command on a real S3 gateway: `LASTGOOD_TEST_S3=endpoint,key,secret,bucket`.

use crate::everywhere;
use crate::tool::Place;

#[test]
fn every_dtype_goes_in_and_out() {
    everywhere::round_trip(&Place::s3());
}

#[test]
fn what_four_ranks_saved_is_exported_whole() {
    everywhere::export_of_ranks(&Place::s3());
}

#[test]
fn a_supervised_job_leaves_a_readable_ledger() {
    everywhere::supervised(&Place::s3());
}

#[test]
fn the_demo_recovers_and_keeps_its_repository() {
    let place = Place::s3();
    let args = ["demo", "--kills", "2", "--seed", "3", "--steps", "40"];
    let ran = place.on(&args).exits(0);
    assert!(ran.out.lines().last().unwrap().starts_with("digest equal: "), "{}", ran.out);
    assert_eq!(ran.out.matches("kill -9 rank").count(), 2, "{}", ran.out);
    let verified = place.on(&["verify", "--run", "demo"]).exits(0);
    assert!(verified.out.contains("no damage"), "{}", verified.out);
    assert!(place.on(&["ls", "--run", "demo"]).exits(0).out.contains("40 "));
    place.on(&args).exits(5);
}

#[test]
fn refused_absent_and_unreachable_stores_are_told_apart() {
    let place = Place::s3();
    place.on(&["ls"]).exits(4);
    let mut wrong_key = place.command(&["ls"]);
    let ran = wrong_key.env("AWS_SECRET_ACCESS_KEY", "not the secret").output().unwrap();
    let ran = crate::tool::Ran::from(ran).exits(5);
    assert!(ran.err.contains("credentials"), "{}", ran.err);
    let mut no_bucket = place.command(&["ls"]);
    let store = "s3://no-such-bucket-of-lastgood/x";
    let ran = crate::tool::Ran::from(no_bucket.env("LASTGOOD_STORE", store).output().unwrap());
    // The URL is wrong, which is for the caller to mend.
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("create the bucket"), "{}", ran.err);
    let file = place.folder().join("in.safetensors");
    std::fs::write(&file, crate::tensors::sample(1)).unwrap();
    let mut import = place.command(&["import", file.to_str().unwrap(), "--step", "1"]);
    let ran = crate::tool::Ran::from(import.env("LASTGOOD_STORE", store).output().unwrap());
    assert_eq!(ran.code, 2, "{}", ran.err);
}
