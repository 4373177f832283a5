//! Which names a checkpoint usually imports.
//!
//! This is a list of what is known to be harmless, not of what is known to be harmful: whatever is not on it
//! is reported. The first part is what `torch.load(weights_only=True)` allows itself, and what DCP's
//! `.metadata` and numpy's arrays are made of; the second part are plain classes of trainers, which
//! `weights_only=True` refuses and which run no code of a stranger.

use super::Name;

/// What to think of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Part of every checkpoint.
    Usual,
    /// A plain class of a trainer: `torch.load` needs `weights_only=False` for it.
    Framework,
    /// Nobody knows what it does.
    Unknown,
    /// It runs commands, code or other pickles, or reaches files and the network.
    Dangerous,
}

const USUAL: &[&str] = &[
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.list",
    "builtins.dict",
    "builtins.tuple",
    "builtins.set",
    "builtins.slice",
    "builtins.range",
    "builtins.object",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.bool",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "uuid.UUID",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.memory_format",
    "torch.layout",
    "torch.strided",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.UninitializedParameter",
    "torch.serialization._get_layout",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch.storage._LegacyStorage",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.per_channel_affine",
    "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.filesystem._StoragePrefix",
    "torch.distributed.checkpoint.planner.BytesIOWriteData",
    "torch.distributed.checkpoint.planner.SavePlan",
    "torch.distributed.checkpoint.planner.TensorWriteData",
    "torch.distributed.checkpoint.planner.WriteItem",
    "torch.distributed.checkpoint.planner.WriteItemType",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.distributed._shard.metadata.ShardMetadata",
    "torch.distributed.tensor.DTensor",
    "torch.distributed.tensor._dtensor_spec.DTensorSpec",
    "torch.distributed.tensor._dtensor_spec.TensorMeta",
    "torch.distributed.tensor.placement_types.Shard",
    "torch.distributed.tensor.placement_types.Replicate",
    "torch.distributed.tensor.placement_types.Partial",
    "torch.distributed.device_mesh.DeviceMesh",
    "torch.distributed.device_mesh._MeshEnv",
];

/// Classes of trainers, by the module that they stand in. A member of an enumeration is a class's name, a
/// dot and a name in capitals.
const FRAMEWORK_MODULES: &[&str] = &[
    "accelerate.state",
    "accelerate.utils.dataclasses",
    "deepspeed.runtime.fp16.loss_scaler",
    "deepspeed.runtime.zero.config",
    "deepspeed.utils.tensor_fragment",
    "lightning.fabric.utilities.data",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
    "megatron.core.enums",
    "megatron.core.transformer.enums",
    "megatron.core.rerun_state_machine",
    "megatron.core.dist_checkpointing.mapping",
    "megatron.core.optimizer.optimizer_config",
    "megatron.model.enums",
    "megatron.enums",
    "omegaconf.base",
    "omegaconf.dictconfig",
    "omegaconf.listconfig",
    "omegaconf.nodes",
    "transformers.debug_utils",
    "transformers.trainer_callback",
    "transformers.trainer_pt_utils",
    "transformers.trainer_utils",
    "transformers.training_args",
    "transformers.training_args_seq2seq",
    "trl.trainer.dpo_config",
    "trl.trainer.grpo_config",
    "trl.trainer.sft_config",
    "torch.optim.swa_utils",
];

/// Single names: DeepSpeed's map of its shards, what the arguments and states of Megatron are made of
/// (`megatron.core.safe_globals`), and numpy's generators of random numbers.
const FRAMEWORK: &[&str] = &[
    "_io.BytesIO",
    "argparse.Namespace",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "io.BytesIO",
    "numpy.random._mt19937.MT19937",
    "numpy.random._pcg64.PCG64",
    "numpy.random._pcg64.PCG64DXSM",
    "numpy.random._philox.Philox",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._sfc64.SFC64",
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "signal.Signals",
    "types.SimpleNamespace",
];

/// Modules nothing of which has a place in a checkpoint.
const DANGEROUS: &[&str] = &[
    "_io",
    "_pickle",
    "_posixsubprocess",
    "_winapi",
    "aiohttp",
    "asyncio",
    "bdb",
    "cloudpickle",
    "code",
    "codeop",
    "commands",
    "cProfile",
    "ctypes",
    "dill",
    "distutils",
    "ftplib",
    "functools",
    "gc",
    "http",
    "httplib",
    "importlib",
    "inspect",
    "io",
    "joblib",
    "linecache",
    "marshal",
    "multiprocessing",
    "nt",
    "ntpath",
    "operator",
    "os",
    "pdb",
    "pickle",
    "pip",
    "pkgutil",
    "platform",
    "posix",
    "posixpath",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "requests.api",
    "runpy",
    "setuptools",
    "shelve",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "test",
    "threading",
    "timeit",
    "trace",
    "types",
    "urllib",
    "venv",
    "webbrowser",
    "winreg",
    "zipimport",
    "torch.hub",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "torch.jit",
    "torch.package",
    "numpy.testing",
    "numpy.f2py",
    "numpy.lib",
];

/// What to think of `name`; `allowed` are names and modules that the user vouches for.
pub(crate) fn judge(name: &Name, allowed: &[String]) -> Standing {
    let Name { module, name } = name;
    let module = match module.as_str() {
        "__builtin__" => "builtins",
        "copy_reg" => "copyreg",
        module => module,
    };
    let full = format!("{module}.{name}");
    let vouched = allowed.iter().any(|prefix| {
        full.strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    if USUAL.contains(&full.as_str())
        || is_dtype_or_storage(module, name)
        || is_rebuild(module, name)
    {
        return Standing::Usual;
    }
    if vouched || FRAMEWORK.contains(&full.as_str()) || is_framework_class(module, name) {
        return Standing::Framework;
    }
    let below = |of: &str| {
        module.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    match module == "builtins" || DANGEROUS.iter().any(|of| below(of)) {
        true => Standing::Dangerous,
        false => Standing::Unknown,
    }
}

/// `torch.float32`, `torch.FloatStorage` and the like.
fn is_dtype_or_storage(module: &str, name: &str) -> bool {
    let stem = name.strip_suffix("Storage").or_else(|| name.strip_suffix("Tensor"));
    let is_class = stem.is_some_and(|stem| {
        !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    match module {
        "torch" => {
            is_class || crate::doctor::tensors::dtype_of_name(name).is_some() || is_odd_dtype(name)
        }
        "torch.cuda" => is_class,
        // The exact types of torch's numbers, and numpy's.
        "numpy" => crate::doctor::tensors::is_numpy_scalar(name),
        "numpy.dtypes" => {
            name.ends_with("DType") && name.bytes().all(|b| b.is_ascii_alphanumeric())
        }
        _ => false,
    }
}

/// Dtypes that have no name in lastgood.
fn is_odd_dtype(name: &str) -> bool {
    let digits = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            !rest.is_empty() && rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    ["int", "uint", "qint", "quint", "bits", "complex"].iter().any(|prefix| digits(prefix))
        || matches!(
            name,
            "float4_e2m1fn_x2"
                | "quint4x2"
                | "quint2x4"
                | "complex32"
                | "complex128"
                | "bits1x8"
                | "bits2x4"
                | "bits4x2"
        )
}

fn is_rebuild(module: &str, name: &str) -> bool {
    module == "torch._utils"
        && (name.starts_with("_rebuild_")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

fn is_framework_class(module: &str, name: &str) -> bool {
    let mut parts = name.split('.');
    let class = parts.next().is_some_and(|class| {
        class.starts_with(|c: char| c.is_ascii_uppercase())
            && class.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    let members = parts.all(|member| {
        member.starts_with(|c: char| c.is_ascii_uppercase())
            && member.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    });
    FRAMEWORK_MODULES.contains(&module) && class && members
}
