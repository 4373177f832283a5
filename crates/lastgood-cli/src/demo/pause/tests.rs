use super::*;

#[test]
fn objects_of_a_save_name_its_step() {
    let check = |key: &str, step: Option<u64>| assert_eq!(step_of(key), step, "{key}");
    check("runs/demo/packs/1/000000000035/3-0.pack", Some(35));
    check("runs/demo/saves/4/000000000130.1/2.idx", Some(130));
    check("runs/demo/ledger/00000000000000000007.json", None);
    check("runs/demo/checkpoints/21473883.json", None);
    check("lastgood.json", None);
}
