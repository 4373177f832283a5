//! Installing what stages need, beside the stages that do not need it yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::gateway::{self, Gateway};
use super::stages::Need;
use crate::process::{self, TOOLS};
use crate::{python as package, repo};

/// Why something that a stage needs is not there.
#[derive(Clone, Debug)]
pub(super) enum Absent {
    /// This machine or user cannot have it.
    Skip(String),
    /// It should have worked.
    Fail(String),
}

/// What became of a need.
struct Ready {
    need: Need,
    result: Result<Option<Gateway>, Absent>,
}

/// Everything that is being installed.
pub(super) struct Installation {
    reports: Receiver<Ready>,
    ready: BTreeMap<Need, Result<(), Absent>>,
    gateway: Option<Gateway>,
}

struct CargoTool {
    need: Need,
    program: &'static str,
    args: &'static [&'static str],
}

/// In the order in which stages need them.
const CARGO_TOOLS: &[CargoTool] = &[
    CargoTool {
        need: Need::Nextest,
        program: "cargo-nextest",
        args: &["--version", "0.9.151", "--no-default-features", "--features", "default-no-update"],
    },
    CargoTool { need: Need::Deny, program: "cargo-deny", args: &["--version", "0.20.2"] },
];

/// What a tool is built with: in a third of the time of its own settings, which optimise it fully.
const CHEAP_BUILD: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
];

/// Programs and the packages of the system that they come from.
const FILE_SYSTEM_TOOLS: &[(&str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_io", "xfsprogs"),
    ("mount", "mount"),
];

/// True if this process may do everything.
pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

impl Installation {
    /// Begins to install what `needs` names, in the background and with the lowest priority.
    pub(super) fn start(needs: BTreeSet<Need>) -> Self {
        let (sender, reports) = channel();
        let (tools, system) = (sender.clone(), sender);
        let wanted = needs.clone();
        let (python, of_python) = (tools.clone(), needs.contains(&Need::Python));
        thread::spawn(move || install_cargo_tools(&needs, &tools));
        thread::spawn(move || {
            if of_python {
                let result = package::prepare().map(|()| None).map_err(failed);
                let _ = python.send(Ready { need: Need::Python, result });
            }
        });
        thread::spawn(move || install_system(&wanted, &system));
        Self { reports, ready: BTreeMap::new(), gateway: None }
    }

    /// Waits until `need` is there or known to be absent.
    pub(super) fn wait(&mut self, need: Need) -> Result<(), Absent> {
        while !self.ready.contains_key(&need) {
            let Ok(report) = self.reports.recv() else {
                return Err(Absent::Fail(format!("installing {need:?} ended without a result")));
            };
            let result =
                report.result.map(|gateway| self.gateway = gateway.or(self.gateway.take()));
            self.ready.insert(report.need, result);
        }
        self.ready[&need].clone()
    }

    /// The environment of tests that use the gateway, while it runs.
    pub(super) fn gateway_env(&self) -> Option<(&'static str, String)> {
        self.gateway.as_ref().map(|gateway| (gateway::VARIABLE, gateway.address.clone()))
    }

    /// Stops the gateway, if it runs.
    pub(super) fn stop_gateway(&mut self) {
        self.gateway = None;
    }
}

fn install_cargo_tools(needs: &BTreeSet<Need>, reports: &Sender<Ready>) {
    for tool in CARGO_TOOLS.iter().filter(|tool| needs.contains(&tool.need)) {
        let result = match process::find(tool.program) {
            Some(_) => Ok(None),
            None => install_cargo_tool(tool).map(|()| None).map_err(failed),
        };
        let _ = reports.send(Ready { need: tool.need, result });
    }
}

fn install_cargo_tool(tool: &CargoTool) -> Result<()> {
    let root = repo::root().join(TOOLS);
    let build = root.join("build").join(tool.program);
    let mut command = background(&process::cargo());
    command.args(["install", tool.program, "--locked"]).args(tool.args);
    command.arg("--root").arg(&root).arg("--target-dir").arg(&build);
    command.envs(CHEAP_BUILD.iter().copied());
    run_logged(command, tool.program)?;
    // Nothing uses it again, and it is large.
    fs::remove_dir_all(&build).context("cannot remove what a tool was built in")
}

fn install_system(needs: &BTreeSet<Need>, reports: &Sender<Ready>) {
    if needs.contains(&Need::Root) {
        let result = if is_root() { Ok(None) } else { Err(Absent::Skip("not root".into())) };
        let _ = reports.send(Ready { need: Need::Root, result });
    }
    if needs.contains(&Need::FileSystems) {
        let result = install_packages(FILE_SYSTEM_TOOLS).map(|()| None);
        let _ = reports.send(Ready { need: Need::FileSystems, result });
    }
    if needs.contains(&Need::Valgrind) {
        let result = install_packages(&[("valgrind", "valgrind")]).map(|()| None);
        let _ = reports.send(Ready { need: Need::Valgrind, result });
    }
    if needs.contains(&Need::Gateway) {
        let result = install_gateway().map(Some);
        let _ = reports.send(Ready { need: Need::Gateway, result });
    }
}

fn install_packages(programs: &[(&str, &str)]) -> Result<(), Absent> {
    let missing: BTreeSet<&str> = programs
        .iter()
        .filter(|(program, _)| process::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
    if !is_root() || process::find("apt-get").is_none() {
        return Err(Absent::Skip(format!("needs the packages {list}")));
    }
    let mut update = background("apt-get");
    update.args(["-qq", "update"]);
    let mut install = background("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-qq", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"])
        .args(missing);
    run_logged(update, "apt-update")
        .and_then(|()| run_logged(install, "apt-install"))
        .map_err(failed)
}

fn install_gateway() -> Result<Gateway, Absent> {
    if !repo::root().join(gateway::SCRIPT).exists() {
        return Err(Absent::Skip(format!("there is no {} yet", gateway::SCRIPT)));
    }
    if process::find("radosgw").is_none() {
        if !is_root() || process::find("apt-get").is_none() {
            return Err(Absent::Skip("needs the packages of the Ceph RADOS Gateway".into()));
        }
        let mut install = background(gateway::SCRIPT);
        install.arg("install");
        run_logged(install, "gateway-install").map_err(failed)?;
    }
    Gateway::start().map_err(failed)
}

fn failed(error: anyhow::Error) -> Absent {
    Absent::Fail(format!("{error:#}"))
}

/// A command that leaves the machine to everything else.
fn background(program: &str) -> Command {
    let mut command = process::command("nice");
    command.args(["-n", "19", program]);
    command
}

/// The file for the output of something in the background.
pub(super) fn log_file(name: &str) -> Result<(File, PathBuf)> {
    let folder = repo::root().join(TOOLS).join("logs");
    fs::create_dir_all(&folder).context("cannot make the folder of logs")?;
    let path = folder.join(format!("{name}.log"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok((file, path))
}

/// Runs `command` to its end with its output in a log, of which an error shows the last lines.
fn run_logged(mut command: Command, name: &str) -> Result<()> {
    let start = Instant::now();
    let (log, path) = log_file(name)?;
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if status.success() {
        return Ok(());
    }
    let (seconds, tail) = (start.elapsed().as_secs(), last_lines(&path));
    bail!("{name} ended with {status} after {seconds} s:\n{tail}");
}

/// What an error shows of a log.
pub(super) fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
