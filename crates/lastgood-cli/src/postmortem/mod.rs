//! What is known of one incident: an attempt that ended before its work was done, and the one that went on.
//!
//! | module | what it does |
//! |---|---|
//! | [`facts`] | reads them from the ledger and the journal |
//! | [`faults`] | what the journal says of failures |
//! | [`page`] | one HTML file of them, which needs nothing else |

mod facts;
mod faults;
mod page;
mod timeline;

pub(crate) use facts::Facts;
pub(crate) use page::page;
