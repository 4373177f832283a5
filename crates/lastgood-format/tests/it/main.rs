//! The stored bytes: vectors, a second reader, round trips, damage, boxes, and the document.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::expect_used, reason = "a test that cannot go on fails, and says at what")]

mod corpus;
mod damage;
mod document;
mod draft;
mod fingerprint;
mod forge;
mod hostile;
mod journal;
mod json;
mod layout;
mod reader;
mod roundtrip;
mod rules;
mod seeded;
mod vectors;
