//! State of a [candle](https://docs.rs/candle-core) model as components (feature `candle`).
//!
//! Variables, optimizer and generator implement [`Component`](crate::state::Component), so that a job
//! names them once to restore and once to save:
//!
//! ```no_run
//! # use lastgood::{Result, Run, candle::{AdamW, Rng}, save::Mode};
//! # struct Trainer { vars: candle_nn::VarMap, optimizer: AdamW, rng: Rng }
//! # fn job(run: &mut Run, trainer: &mut Trainer, step: u64) -> Result<()> {
//! run.restore(trainer, |t, targets| {
//!     targets.add("model", "trainer", &mut t.vars)?;
//!     targets.add("optimizer", "trainer", &mut t.optimizer)?;
//!     targets.add("rng", "trainer", &mut t.rng)
//! })?;
//! run.save(step, Mode::Async, |capture| {
//!     capture.add("model", "trainer", &trainer.vars)?;
//!     capture.add("optimizer", "trainer", &trainer.optimizer)?;
//!     capture.add("rng", "trainer", &trainer.rng)
//! })?;
//! # Ok(()) }
//! ```
//!
//! Plain serde values (an epoch, a position in the data) and other durability classes go through
//! [`Capture::component`](crate::state::Capture::component) and
//! [`Targets::component`](crate::state::Targets::component), as in `examples/candle.rs`.
//!
//! | type | is saved as | restored |
//! |---|---|---|
//! | [`VarMap`](candle_nn::VarMap), `BTreeMap<String, Var>` | one tensor a variable; the same variable under two names is tied | in place, into the variables that exist |
//! | `BTreeMap<String, Tensor>` | one tensor each | by a new tensor in its place |
//! | [`AdamW`] | both moments of each variable, the count of steps, the parameters | in place |
//! | [`Rng`] | its four words, for each rank its own | in place |
//! | `candle_nn::SGD` | nothing: it has no state but its learning rate | |
//!
//! - **Every rank holds the same bytes** of variables, tensors and moments; one of them stores each.
//! - **Nothing is half restored by a mismatch**: names, dtypes and shapes are compared, and every byte is
//!   verified, before the first variable changes. Only a plain value of another type than was saved is
//!   found later.
//! - **Memory.** Saving copies from candle's memory straight into the arena. Restoring holds the bytes of
//!   all variables once beside them. Tensors on another device are copied to this host for either.
//! - **Dtypes.** All of candle's. It cannot make variables of the packed ones (`F4`, `F6E2M3`, `F6E3M2`,
//!   `F8E8M0`), only tensors.
//! - candle's own generator for the CPU cannot be seeded: [`Tensor::randn`](candle_core::Tensor::randn),
//!   the initial values of layers and dropout differ from run to run. [`Rng`] makes such tensors
//!   repeatably. Initial values do not matter once they are restored or saved.

mod adamw;
mod bytes;
mod rng;
mod vars;

pub use adamw::AdamW;
pub use rng::Rng;
