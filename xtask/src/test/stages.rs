//! The stages of `cargo xtask test`, in the order in which they run.
//!
//! A stage is one command line. It passes if it exits with 0; if it prints `N passed, N failed` or
//! `N passed, N failed, N skipped` alone on a line (nextest's and cargo's own summaries count as well), it
//! is counted by what it prints, otherwise as one.

use crate::process;

/// What a stage needs beyond Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// To run as root: mounting file systems, cutting their power.
    Root,
    /// cargo-nextest.
    Nextest,
    /// cargo-deny.
    Deny,
    /// The tools of ext4 and XFS.
    FileSystems,
    /// A running S3 gateway; its address is in `LASTGOOD_TEST_S3`.
    Gateway,
    /// The environment of the Python tests.
    Python,
    /// valgrind.
    Valgrind,
}

/// One thing that is tried.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    /// What a passing stage shows.
    pub(super) shows: &'static str,
    /// The command line. Its first word may be `xtask`, which is this program, or one of the programs of the
    /// workspace: to have cargo run it would build it and all below it again, with fewer features.
    pub(super) command: &'static str,
    /// The command line where `LASTGOOD_SLOW` asks for the long variant.
    pub(super) long: Option<&'static str>,
    pub(super) env: &'static [(&'static str, &'static str)],
    pub(super) needs: &'static [Need],
    /// Runs programs of the workspace, which are built before the first such stage.
    pub(super) programs: bool,
    /// Mostly waits, and runs beside the stages after it.
    pub(super) beside: bool,
}

impl Stage {
    const fn new(name: &'static str, shows: &'static str, command: &'static str) -> Self {
        Self {
            name,
            shows,
            command,
            long: None,
            env: &[],
            needs: &[],
            programs: false,
            beside: false,
        }
    }

    const fn long(self, command: &'static str) -> Self {
        Self { long: Some(command), ..self }
    }

    const fn env(self, env: &'static [(&'static str, &'static str)]) -> Self {
        Self { env, ..self }
    }

    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn programs(self) -> Self {
        Self { programs: true, ..self }
    }

    const fn beside(self) -> Self {
        Self { beside: true, ..self }
    }

    /// True if it is cargo that builds something.
    pub(super) fn is_build(&self) -> bool {
        self.command.starts_with("cargo ")
    }
}

/// Builds what these stages run: a release build would compile everything below it once more, and is an
/// eighth faster in them. Not in the list, since it is run when it is needed.
pub(super) const BUILD: Stage = Stage::new("build", "the programs build", process::BUILD);

pub(super) const STAGES: &[Stage] = &[
    Stage::new(
        "fetch",
        "the lock file is right and every dependency is here",
        "cargo fetch --locked",
    ),
    Stage::new("fmt", "the code is formatted", "cargo fmt --all --check"),
    Stage::new("lint", "the project keeps its own rules", "xtask lint"),
    Stage::new(
        "clippy",
        "no lint of rustc or clippy fires",
        "cargo clippy --workspace --all-targets --features lastgood/candle --locked -- -D warnings",
    ),
    Stage::new(
        "tests",
        "unit, integration and conformance tests, on a real S3 gateway too",
        "cargo nextest run --workspace --features lastgood/candle --locked",
    )
    .needs(&[Need::Nextest, Need::Gateway]),
    // The whole workspace, although only two crates have examples: any other choice of crates has another
    // set of features, for which everything would be built again.
    Stage::new(
        "doctests",
        "the examples in the documentation",
        "cargo test --doc --workspace --features lastgood/candle --locked",
    ),
    Stage::new(
        "doc",
        "the documentation builds and its links resolve",
        "cargo doc --workspace --lib --no-deps --features lastgood/candle --locked",
    )
    .env(&[("RUSTDOCFLAGS", "-D warnings")]),
    Stage::new(
        "package",
        "the Python package installs as with pip; its types, its style, its stubs",
        "xtask python lint",
    )
    .needs(&[Need::Python])
    .programs(),
    Stage::new(
        "python",
        "the package with PyTorch, JAX and their trainers, under kills and damage",
        "xtask python test",
    )
    .needs(&[Need::Python, Need::Gateway])
    .programs(),
    Stage::new(
        "power-cuts",
        "file systems that lose power during saves",
        "lastgood-chaos power-cuts --ext4 300 --xfs 150",
    )
    .needs(&[Need::Root, Need::FileSystems])
    .programs()
    .beside(),
    Stage::new(
        "kills",
        "kill -9 before every store call and sync of two saves of four ranks; also behind them in the long variant",
        "lastgood-chaos kills --every 2",
    )
    .long("lastgood-chaos kills")
    .programs()
    .beside(),
    Stage::new(
        "simulate",
        "20,000 seeded interleavings of ranks, attempts, faults and crashes",
        "lastgood-chaos simulate --seeds 20000",
    )
    .programs(),
    Stage::new(
        "enumerate",
        "250,000 states that a crash can leave on a disk; a million in the long variant",
        "lastgood-chaos enumerate --states 250000",
    )
    .long("lastgood-chaos enumerate --states 1000000")
    .programs(),
    Stage::new(
        "journal",
        "20,000 crashes of the journal's writer and of its recovery",
        "lastgood-chaos journal --crashes 20000",
    )
    .programs(),
    Stage::new("mutants", "planted bugs are each found", "lastgood-chaos mutants").programs(),
    Stage::new("bit-flips", "every flipped bit of a small repository", "lastgood-chaos bit-flips")
        .programs(),
    Stage::new(
        "cli-flips",
        "500 flipped bits of a larger repository, through the command; 2,000 in the long variant",
        "lastgood-chaos cli-flips --flips 500",
    )
    .long("lastgood-chaos cli-flips --flips 2000")
    .programs(),
    Stage::new("full-disk", "a disk that fills up during a save", "lastgood-chaos full-disk")
        .needs(&[Need::Root, Need::FileSystems])
        .programs(),
    Stage::new(
        "demo",
        "a training job whose ranks are killed ends with the bytes of one that nothing disturbed",
        "lastgood demo --kills 5 --seed 7",
    )
    .programs(),
    Stage::new("docs", "the generated pages say what the code says", "xtask docs --check")
        .programs(),
    Stage::new(
        "instructions",
        "no hot loop takes more instructions than before",
        "xtask instructions",
    )
    .needs(&[Need::Valgrind]),
    // Late, so that cargo-deny can be built beside everything else.
    Stage::new(
        "deny",
        "licences, sources and banned crates, offline",
        "cargo deny --offline check --hide-inclusion-graph bans licenses sources",
    )
    .needs(&[Need::Deny]),
];
