//! Steps in names.

use super::step_in_name;

#[test]
fn a_metric_in_a_name_is_no_step() {
    for (name, step) in [
        ("epoch=1-step=800.ckpt", Some(800)),
        ("epoch=1-step=800-v1.ckpt", Some(800)),
        ("step-800.pt", Some(800)),
        ("model_step800.pt", Some(800)),
        ("global_step=7.ckpt", Some(7)),
        ("epoch=0-train_loss_step=0.25.ckpt", None),
        ("epoch=0-train_loss_step=-0.09.ckpt", None),
        ("epoch=0-acc_step=1-step=800.ckpt", Some(800)),
        ("train_loss_step=0.25-step=800.ckpt", Some(800)),
        ("last.ckpt", None),
        ("step.ckpt", None),
        ("step=99999999999999999999.ckpt", None),
    ] {
        assert_eq!(step_in_name(name), step, "{name}");
    }
}
