//! The stored bytes: vectors, a second reader, round trips, damage, boxes, and the document.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;
mod draft;
mod reader;
mod seeded;
mod vectors;
