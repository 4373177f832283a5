//! What `ds_to_universal` makes: below `zero`, a folder for each parameter with its weights and with what
//! the optimizer keeps of it.

use std::collections::BTreeSet;
use std::path::Path;

use super::ranks::Ranks;
use super::{missing, part};
use crate::doctor::Audit;
use crate::doctor::discover::Folder;
use crate::doctor::report::{Coverage, Finding, Findings};

pub(super) const PARAMETERS: &str = "zero";
pub(super) const SUFFIX: &str = "_universal";
const WEIGHTS: &str = "fp32.pt";
const OPTIMIZER: &str = "optimizer_state.pt";

pub(super) fn audit(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    ranks: &Ranks,
    findings: &mut Findings,
    coverage: &mut Coverage,
) {
    let root = path.join(PARAMETERS);
    let prefix = format!("{prefix}{PARAMETERS}/");
    let folder = match Folder::read(&root) {
        Ok(folder) => folder,
        Err(error) => {
            return findings.add(Finding::flaw(prefix, "a folder that can be read", &error.into()));
        }
    };
    if !folder.has(OPTIMIZER) {
        findings.add(missing(
            format!("{prefix}{OPTIMIZER}"),
            "what all parameters have in common in the optimizer".to_owned(),
        ));
    }
    for name in folder.files.iter().filter(|name| name.ends_with(".pt")) {
        part(audit, &root, &prefix, name, findings, coverage);
    }
    let mut kept: Vec<(&String, BTreeSet<String>)> = Vec::new();
    for name in &folder.folders {
        let path = root.join(name);
        let Ok(below) = Folder::read(&path) else { continue };
        let files: BTreeSet<String> =
            below.files.into_iter().filter(|file| file.ends_with(".pt")).collect();
        for file in &files {
            part(audit, &path, &format!("{prefix}{name}/"), file, findings, coverage);
        }
        kept.push((name, files));
    }
    // What is kept of one parameter is kept of each.
    let mut all: BTreeSet<String> = kept.iter().flat_map(|(_, files)| files.clone()).collect();
    all.insert(WEIGHTS.to_owned());
    for (name, files) in &kept {
        for file in all.difference(files) {
            findings.add(missing(
                format!("{prefix}{name}/{file}"),
                "the same files for each parameter".to_owned(),
            ));
        }
    }
    for name in ranks.parameters.iter().filter(|name| !folder.has_folder(name)) {
        findings.add(missing(
            format!("{prefix}{name}"),
            "a folder for each parameter that the files of the model name".to_owned(),
        ));
    }
}
