//! Declaring the state of a model: what belongs to it, who owns it, and how long it must live.
//!
//! [`Capture`] names the state that is saved, [`Targets`] the memory that it is restored into. Both
//! are filled component by component. A component that is declared twice, or restored but not
//! declared at save time, is an error and not a guess.

mod capture;
mod finite;
mod source;
mod targets;
mod update;

pub use capture::{Capture, Part};
pub(crate) use capture::{Piece, Tie};
pub use lastgood_format::index::Durability;
use lastgood_format::{Error, Result};
pub use source::Source;
pub(crate) use targets::{Request, Sink, Want};
pub use targets::{Slots, Targets};
pub use update::{Name, Optimizer, Update};
pub(crate) use update::{Origin, Role};

/// This process among those that train one model together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// The logical rank of this process, from 0.
    pub rank: u32,
    /// The number of ranks.
    pub size: u32,
}

impl World {
    /// One process alone.
    pub const ALONE: Self = Self { rank: 0, size: 1 };
}

/// A part of a model's state that knows how to name its tensors and values.
pub trait Component {
    /// Names everything that is to be saved.
    ///
    /// # Errors
    /// `Invalid` if something cannot be saved as it is.
    fn capture<'a>(&'a self, part: &mut Part<'_, 'a>) -> Result<()>;

    /// Names the memory that everything is restored into.
    ///
    /// # Errors
    /// `Invalid` if something cannot be restored as it is.
    fn restore<'a>(&'a mut self, slots: &mut Slots<'_, 'a>) -> Result<()>;
}

/// A tensor for a person: on one line, and no longer than that.
pub(crate) fn show(component: &str, name: &str) -> String {
    format!("{}/{}", show_name(component), show_name(name))
}

/// A name for a person. Names may hold line feeds, or characters that reorder a line, and be as long
/// as a book.
pub(crate) fn show_name(name: &str) -> String {
    const SHOWN: usize = 80;
    let reorders = |c: &char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::new();
    for c in name.chars().take(SHOWN) {
        match c.is_control() || reorders(&c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    if shown.len() < name.len() && name.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// The name under which one rank's own `name` is stored.
pub(crate) fn rank_name(name: &str, rank: u32) -> String {
    format!("{name}@rank{rank}")
}

fn check_component(name: &str, owner: &str) -> Result<()> {
    if name.is_empty() || name.len() > 1024 || owner.is_empty() || owner.len() > 1024 {
        return Err(Error::invalid(format!(
            "component {name:?} of owner {owner:?}: names have 1 to 1024 bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
