//! How far each execution of a search goes.

/// Each execution goes over so many times as many checkpoints as the one before.
const GROWTH: usize = 4;

/// The most executions that finding a divergence in `steps` steps may take: one for each time that they can be halved,
/// and never fewer than two, the last of them for the element.
pub(crate) fn executions_max(steps: u64) -> u32 {
    let halvings = steps.max(1).next_power_of_two().trailing_zeros();
    halvings.max(2)
}

/// Divides `checkpoints`, the last of which ends `steps` steps, into executions: behind how many of them each one
/// ends. The first goes to the first checkpoint, the others further and further, and the last one that is allowed to
/// the end: what parts early is found at little cost, and what parts late by few executions.
pub(crate) fn ends(checkpoints: usize, steps: u64) -> Vec<usize> {
    let allowed = executions_max(steps) - 1;
    let mut ends = Vec::new();
    let (mut end, mut stride) = (0_usize, 1_usize);
    for execution in 1..=allowed {
        if end == checkpoints {
            break;
        }
        end = if execution == allowed { checkpoints } else { checkpoints.min(end + stride) };
        stride = stride.saturating_mul(GROWTH);
        ends.push(end);
    }
    ends
}

#[cfg(test)]
mod tests;
