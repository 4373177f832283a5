//! The decisions that the simulation found hard, each alone, and the attacks on a small scale.

mod lost_base;
