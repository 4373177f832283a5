//! One module for each tool whose checkpoints are looked at.

pub(crate) mod dcp;
mod deepspeed;
mod files;
mod hf;
mod integrity;
mod lightning;
mod megatron;
mod ocdbt;
mod optimizer;
mod orbax;
pub(crate) mod safetensors;
mod stock;
mod zarr;

use std::fs;
use std::path::Path;

use super::Audit;
use super::discover::{Folder, Group, Place, number_behind};
use super::disk::Span;
use super::report::{Checkpoint, Finding, Series};
use super::torch::{Kind, kind};

/// What wrote a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    HfTrainer,
    Dcp,
    Lightning,
    DeepSpeed,
    Megatron,
    Orbax,
    Safetensors,
    Torch,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HfTrainer => "hf-trainer",
            Self::Dcp => "dcp",
            Self::Lightning => "lightning",
            Self::DeepSpeed => "deepspeed",
            Self::Megatron => "megatron",
            Self::Orbax => "orbax",
            Self::Safetensors => "safetensors",
            Self::Torch => "torch",
        }
    }

    /// What a folder of this name is, if it is a checkpoint itself.
    pub(crate) fn of_folder(name: &str, folder: &Folder) -> Option<Self> {
        let is_others = orbax::is(name, folder) || hf::is_of_another(folder);
        if number_behind(name, "checkpoint-").is_some() && !is_others {
            return Some(Self::HfTrainer);
        }
        if hf::is(folder) {
            return Some(Self::HfTrainer);
        }
        if megatron::is(name, folder) {
            return Some(Self::Megatron);
        }
        if deepspeed::is(name, folder) {
            return Some(Self::DeepSpeed);
        }
        if orbax::is(name, folder) {
            return Some(Self::Orbax);
        }
        if folder.has(dcp::METADATA) || folder.any(|file| file.ends_with(".distcp")) {
            return Some(Self::Dcp);
        }
        let is_accelerate = folder.any(|file| file.starts_with(hf::RANDOM_STATES));
        let weights = |file: &str| {
            file.ends_with(".safetensors")
                || safetensors::is_index(file)
                || (is_accelerate && file == "pytorch_model.bin")
        };
        let loose = folder.any(|file| file.ends_with(".ckpt"));
        (!loose && folder.any(weights)).then_some(Self::Safetensors)
    }

    /// What a file is that was named by the user.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        if name == dcp::METADATA || name.ends_with(".distcp") {
            return Some(Self::Dcp);
        }
        Self::of_loose_file(path).or(Some(Self::Torch))
    }

    /// What a file is that stands in a folder among others.
    pub(crate) fn of_loose_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (_, extension) = name.rsplit_once('.')?;
        match extension {
            "safetensors" => Some(Self::Safetensors),
            "ckpt" => Some(Self::Lightning),
            "pt" | "pth" | "pkl" | "pickle" => Some(Self::Torch),
            // A file of any program may be called so.
            "bin" => {
                let span = Span::open(path).ok()?;
                let torch = matches!(kind(&span), Ok(Kind::Zip | Kind::Legacy));
                (torch || name.starts_with("pytorch_model")).then_some(Self::Torch)
            }
            _ => None,
        }
    }
}

/// Looks at one checkpoint.
pub(super) fn audit(audit: &Audit<'_>, format: Format, place: &Place) -> Checkpoint {
    let mut checkpoint = Checkpoint::new(&place.path, format.name());
    checkpoint.bytes = place.bytes;
    checkpoint.modified = fs::metadata(&place.path).and_then(|m| m.modified()).ok();
    if !place.is_folder {
        files::audit(audit, format, &mut checkpoint);
        return checkpoint;
    }
    let folder = match Folder::read(&place.path) {
        Ok(folder) => folder,
        Err(error) => {
            checkpoint.findings.add(Finding::flaw(".", "a folder that can be read", &error.into()));
            return checkpoint;
        }
    };
    match format {
        Format::HfTrainer => hf::audit(audit, &folder, &mut checkpoint),
        Format::Dcp => dcp::audit(audit, &folder, &mut checkpoint),
        Format::DeepSpeed => deepspeed::audit(audit, &folder, &mut checkpoint),
        Format::Megatron => megatron::audit(audit, &folder, &mut checkpoint),
        Format::Orbax => orbax::audit(audit, &folder, &mut checkpoint),
        Format::Safetensors | Format::Lightning | Format::Torch => {
            safetensors::audit(audit, &folder, &mut checkpoint);
        }
    }
    checkpoint
}

/// What can be said of all checkpoints of a folder together.
pub(super) fn finish(group: &Group, checkpoints: Vec<Checkpoint>) -> Series {
    let mut series = Series {
        path: group.path.clone(),
        format: group.format.name(),
        checkpoints,
        findings: Default::default(),
        stock: None,
    };
    series.stock = stock::of(group.format, &mut series);
    series
}
