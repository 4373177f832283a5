//! What a stage's output says about how many tests it ran.

/// Tests that passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Count {
    pub(super) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(super) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(super) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Reads output line by line.
#[derive(Debug, Default)]
pub(super) struct Counter {
    /// The last summary; a program that prints several says the same or more in the last.
    last: Option<Count>,
    /// The sum of cargo's summaries, one for each test binary.
    cargo: Option<Count>,
}

impl Counter {
    pub(super) fn line(&mut self, line: &str) {
        if let Some((_, summary)) = line.trim_start().split_once("test result: ") {
            let summary = summary.split_once(". ").map_or("", |(_, counts)| counts);
            self.cargo.get_or_insert_default().add(count(summary));
        } else if let Some((_, summary)) = line.split_once("] ").filter(|_| is_nextest(line)) {
            let counts = summary.split_once(": ").map_or("", |(_, counts)| counts);
            self.last = Some(count(counts));
        } else if is_plain(line) {
            self.last = Some(count(line));
        }
    }

    /// The counts, if there is a summary.
    pub(super) fn total(&self) -> Option<Count> {
        self.last.or(self.cargo)
    }
}

/// `Summary [   1.234s] 5 tests run: 4 passed (1 slow), 1 failed, 0 skipped`
fn is_nextest(line: &str) -> bool {
    line.trim_start().starts_with("Summary [") && line.contains(" run: ")
}

/// `5 passed, 0 failed, 1 skipped`
fn is_plain(line: &str) -> bool {
    let mut parts = line.trim().split(", ");
    let mut part = |word: &str| {
        let number = parts.next()?.strip_suffix(word)?.strip_suffix(' ')?;
        number.parse::<u64>().ok()
    };
    part("passed").is_some()
        && part("failed").is_some()
        && (part("skipped").is_some() || !line.contains("skipped"))
        && parts.next().is_none()
}

/// Sums up the parts `N word` of a summary; what ends otherwise than by passing has failed.
fn count(summary: &str) -> Count {
    let mut count = Count::default();
    for part in summary.split([',', ';']) {
        let mut words = part.split_whitespace();
        let (number, word) = (words.next(), words.next());
        let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) else { continue };
        match word {
            Some("passed") => count.passed += number,
            Some("failed" | "exec" | "timed") => count.failed += number,
            Some("skipped" | "ignored") => count.skipped += number,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests;
