//! The library over real stores, one feature a module.

mod fixture;
mod save_restore;
