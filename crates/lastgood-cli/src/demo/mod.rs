//! The training job of `lastgood demo`: a small network that learns handwritten digits on several
//! rank processes, and whose every byte is a function of its configuration.
//!
//! It is a real job in the respects that matter to a checkpoint. Weights are replicated and the
//! optimizer's moments are sharded by rows over the ranks; a loader walks the data in a shuffled
//! order; random numbers disturb the images, so that their generators must be restored; and the
//! ranks depend on each other in every step. [`job`] puts the parts together and shows what is to be
//! saved; [`rank`] is the process that runs and saves it; the rest kills such processes, and compares
//! what they leave.

mod augmentation;
mod collective;
pub(crate) mod compare;
mod digits;
pub(crate) mod job;
mod loader;
pub(crate) mod message;
mod network;
mod optimizer;
mod pause;
pub(crate) mod plan;
pub(crate) mod rank;
mod rng;
mod shares;
