//! Files that a person can hold in mind.

use anyhow::Result;

use super::Findings;
use crate::repo;

const LINES_AIM: usize = 500;
const LINES_MAX: usize = 1000;

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    for path in repo::files("rs")? {
        let text = repo::read(&path)?;
        for (line, text) in (1..).zip(text.lines()) {
            let inline =
                ["mod tests {", "mod test {"].iter().any(|mark| text.trim().starts_with(mark));
            if inline {
                findings.error(&path, line, "tests stand in their own file: write `mod tests;`");
            }
        }
        let lines = text.lines().count();
        if repo::is_test(&path) || lines <= LINES_AIM {
            continue;
        }
        let message = format!("{lines} lines; aim at {LINES_AIM}, never more than {LINES_MAX}");
        match lines > LINES_MAX {
            true => findings.error(&path, 0, message),
            false => findings.warning(&path, 0, message),
        }
    }
    Ok(())
}
