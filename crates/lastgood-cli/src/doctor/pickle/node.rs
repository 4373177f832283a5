//! Plain data that a pickle describes.

use std::ops::Range;

/// A node of the stream that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(pub(super) u32);

/// One value. Texts and bytes stay where they are in the stream; members are named by [`Id`], so that a
/// stream of n bytes has at most n nodes, however often it refers to one.
#[derive(Debug)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits.
    Large,
    Float(f64),
    Text(Range<usize>),
    Bytes(Range<usize>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name that would be imported, by its number.
    Name(u32),
    Call(Box<Call>),
    /// What is kept beside the stream, such as a tensor's storage, by what it is called there.
    Persistent(Id),
    /// Something that cannot be told without running the stream.
    Opaque,
}

/// Something that would be called, and what would be done with the result.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) callee: Id,
    pub(crate) args: Id,
    /// What its state would be set to.
    pub(crate) state: Option<Id>,
    /// What would be appended to it.
    pub(crate) items: Vec<Id>,
    /// What would be put into it under keys.
    pub(crate) pairs: Vec<(Id, Id)>,
}
