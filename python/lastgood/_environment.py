"""What decides the bits of this process beside its state: hardware, libraries, settings, variables and code.

`collect` is a flat map of dotted keys to text, the same for two processes that compute alike, so that a restore can
say before the first step what will differ. It asks only what is imported already, takes milliseconds, and leaves out
what it cannot find out. A process that has imported more than another one has more keys. `effect_of` tells what it
means that the values of a key differ.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

from lastgood import _lastgood

#: ``numerics``: equal bytes cannot be promised. ``safety``: a restore may put state where it does not belong.
#: ``information``: neither.
Effect = Literal["numerics", "safety", "information"]

#: Imported packages whose version is recorded, each with what it is called on PyPI if that is another name. Beside
#: those that compute: those that decode, shuffle or tokenize what is computed with.
PACKAGES: dict[str, str] = {
    **dict.fromkeys(
        [
            "accelerate", "apex", "bitsandbytes", "chex", "cupy", "datasets", "deepspeed", "diffusers", "equinox",
            "fairscale", "flax", "grain", "jax", "jaxlib", "lastgood", "lightning", "ml_dtypes", "numba", "numpy",
            "optax", "pandas", "peft", "pyarrow", "scipy", "sentencepiece", "tensorflow", "tiktoken", "timm",
            "tokenizers", "torch", "torch_xla", "torchao", "torchaudio", "torchdata", "torchvision", "transformers",
            "triton", "trl", "vllm", "webdataset", "xformers",
        ],
        "",
    ),
    "PIL": "pillow",
    "cv2": "opencv-python",
    "flash_attn": "flash-attn",
    "haiku": "dm-haiku",
    "lightning_fabric": "lightning-fabric",
    "megatron.core": "megatron-core",
    "nvidia.dali": "nvidia-dali-cuda120",
    "orbax.checkpoint": "orbax-checkpoint",
    "pytorch_lightning": "pytorch-lightning",
    "sklearn": "scikit-learn",
    "streaming": "mosaicml-streaming",
    "transformer_engine": "transformer-engine",
}  # fmt: skip

#: Packages that lay out what they save themselves, which they change with a major version, or with a minor one below
#: 1.0: ``package.NAME.major``.
LAYOUTS = (
    "accelerate", "deepspeed", "flax", "grain", "lightning", "megatron.core", "optax", "pytorch_lightning",
    "streaming", "torch", "torchdata", "transformer_engine", "transformers",
)  # fmt: skip

#: ``torch.NAME``: getters of torch._C without arguments, by what follows ``_get_``.
TORCH_FLAGS = (
    "blas_preferred_backend", "cpu_allow_fp16_reduced_precision_reduction", "cpu_capability",
    "cublas_allow_bf16_reduced_precision_reduction", "cublas_allow_fp16_accumulation",
    "cublas_allow_fp16_reduced_precision_reduction", "cublas_allow_tf32", "cublaslt_prefer_grouped_gemm",
    "cudnn_allow_tf32", "cudnn_benchmark", "cudnn_depthwise_kernel", "cudnn_deterministic", "cudnn_enabled",
    "cudnn_sdp_enabled", "deterministic_algorithms", "deterministic_algorithms_warn_only",
    "deterministic_fill_uninitialized_memory", "fa3_sdp_enabled", "fa4_sdp_enabled", "flash_sdp_enabled",
    "float32_matmul_precision", "linalg_preferred_backend", "math_sdp_allow_fp16_bf16_reduction",
    "math_sdp_enabled", "mem_efficient_sdp_enabled", "miopen_immediate", "mkldnn_deterministic", "mkldnn_enabled",
    "native_aot_enabled", "nnpack_enabled", "onednn_allow_tf32", "overrideable_sdp_enabled", "qengine",
    "rocm_fa_preferred_backend", "sdp_priority_order", "sm_carveout_experimental",
)  # fmt: skip
#: ``torch.fp32_precision.BACKEND.OPERATION``.
TORCH_FP32 = {
    "generic": ("all",),
    "cuda": ("all", "matmul", "conv", "rnn"),
    "mkldnn": ("all", "matmul", "conv", "rnn"),
}
#: ``torch.inductor.NAME``: settings of compiled programs.
TORCH_INDUCTOR = (
    "allow_buffer_reuse", "coordinate_descent_tuning", "deterministic", "emulate_precision_casts",
    "epilogue_fusion", "fallback_random", "max_autotune", "max_autotune_gemm", "split_reductions",
)  # fmt: skip
#: Libraries of CUDA that come as packages of their own.
CUDA_LIBRARIES = ("cublas", "cudnn", "cufft", "cusolver", "cusparse", "cusparselt", "nccl")
#: ``jax.NAME``: settings, without the ``jax_`` in front of each.
JAX_SETTINGS = (
    "default_device", "default_matmul_precision", "default_prng_impl", "disable_jit", "enable_x64",
    "exec_time_optimization_effort", "numpy_dtype_promotion", "numpy_rank_promotion", "random_seed_offset",
    "softmax_custom_jvp", "threefry_gpu_kernel_lowering", "threefry_partitionable", "use_shardy_partitioner",
)  # fmt: skip

#: Variables that decide results, and families of them.
VARIABLES = frozenset(
    {
        "ATEN_CPU_CAPABILITY", "BLIS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES", "GOMP_CPU_AFFINITY",
        "HIPBLASLT_ALLOW_TF32", "HSA_OVERRIDE_GFX_VERSION", "LD_PRELOAD", "LIBTPU_INIT_ARGS", "NCCL_ALGO",
        "NCCL_BUFFSIZE", "NCCL_COLLNET_ENABLE", "NCCL_MAX_CTAS", "NCCL_MAX_NCHANNELS", "NCCL_MIN_CTAS",
        "NCCL_MIN_NCHANNELS", "NCCL_NTHREADS", "NCCL_NVLS_ENABLE", "NCCL_PROTO", "NPY_DISABLE_CPU_FEATURES",
        "NPY_ENABLE_CPU_FEATURES", "NUMEXPR_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OPENBLAS_CORETYPE",
        "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "TF_CUDNN_DETERMINISTIC", "TF_DETERMINISTIC_OPS",
        "TF_ENABLE_ONEDNN_OPTS", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT",
        "TORCH_COMPILE_DISABLE", "TORCH_LINALG_PREFER_CUSOLVER", "VECLIB_MAXIMUM_THREADS",
        "VLLM_BATCH_INVARIANT",
    }
)  # fmt: skip
VARIABLE_FAMILIES = (
    "CUBLASLT_", "CUDNN_", "DNNL_", "JAX_", "KMP_", "MIOPEN_", "MKL_", "NVTE_", "OMP_", "ONEDNN_", "ROCBLAS_",
    "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_CUDNN_", "TRITON_", "XLA_",
)  # fmt: skip
#: Of a family, variables with such a word are about places and credentials.
_NOT_NUMERIC = re.compile(
    "ADDRESS|AUTH|CERT|COOKIE|CRED|DIR|DUMP|FILE|HOST|ID$|KEY|LOG|PASS|PATH|PORT|PRINT|PROXY|PWD|SECRET|TOKEN"
    "|TRACE|UR[IL]|USER|VERBOS|WEBHOOK"
)
#: A value that may hold a name and a password, or names a secret itself.
_CREDENTIAL = re.compile("://[^/ ]*@|(token|secret|passw(or)?d|credential|api_?key)[^ ]*=", re.I)

#: Flags of processors that libraries choose kernels by.
_ISA = re.compile("(avx|amx|sse|ssse|fma|f16c|bmi|asimd|sve|sme(?!p)|bf16|i8mm|fphp|vsx|neon)")
#: Where the driver of CUDA tells of itself.
_NVIDIA = Path("/proc/driver/nvidia")
#: What git says about a program may take so many seconds, in each of two calls.
_GIT_WAIT = 2.0
_LOCKS = ("uv.lock", "poetry.lock", "Cargo.lock", "pdm.lock", "conda-lock.yml", "requirements*.txt")
_LOCK_BYTES_MAX = 1 << 26


def collect() -> dict[str, str]:
    """The environment and the settings of this process, by dotted keys in their order.

    It never fails, imports no framework, and starts no device. No value is a secret: variables are chosen by name, and
    the words of the command line are hashed. ``code.*`` is as it was at the first call. Ask where the state is saved,
    when everything that computes is imported and its devices are in use.

    Example:
        >>> found = collect()
        >>> found["python.implementation"], "package.lastgood" in found
        ('CPython', True)
        >>> found == collect()
        True
    """
    found: dict[str, str] = {}
    for family in (_host, _cpu, _packages, _gpus, _torch, _numpy, _jax, _variables, _code):
        items = family()
        while True:
            # What a library answers is its own affair; nothing of it stops a save.
            try:
                key, value = next(items)
                found[key] = _text(value)
            except StopIteration:
                break
            except Exception:
                break
    return dict(sorted(found.items()))


def effect_of(key: str) -> Effect:
    """What it means that the values of ``key`` differ. A key of a family that is not known counts as numerics.

    Example:
        >>> effect_of("env.OMP_NUM_THREADS"), effect_of("package.torch.major"), effect_of("host.name")
        ('numerics', 'safety', 'information')
    """
    return cast(Effect, _lastgood.effect_of(key))


_Items = Iterator[tuple[str, Any]]


def _ask(call: Callable[[], Any]) -> Any:
    """What ``call`` answers; ``absent`` if it fails, as getters of torch do when old and new settings are mixed."""
    try:
        return call()
    except Exception:
        return "absent"


def _text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(_text, value))
    # torch.float32, and members of enumerations of C.
    return re.sub(r"^(torch\.|_\w+\.)", "", str(value))


def _digest(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:32]


def _loaded(name: str) -> Any:
    """An imported module; None for one whose import is not over."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if getattr(spec, "_initializing", False) else module


def _host() -> _Items:
    yield "python.version", platform.python_version()
    yield "python.implementation", platform.python_implementation()
    yield "os.name", platform.system()
    yield "os.release", platform.release()
    yield "host.name", platform.node()
    names = getattr(os, "confstr_names", {})
    known = "CS_GNU_LIBC_VERSION" in names
    yield "libc", os.confstr("CS_GNU_LIBC_VERSION") if known else " ".join(platform.libc_ver())


def _cpu() -> _Items:
    yield "cpu.arch", platform.machine()
    # Set by libraries for the thread that loads them, too: numbers below the smallest normal one become 0.
    yield "cpu.flush_denormal", sys.float_info.min / 2 == 0.0
    affinity = getattr(os, "sched_getaffinity", None)
    yield "cpu.count", len(affinity(0)) if affinity else os.cpu_count()
    about: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        # One processor: to ask for all of a large machine takes long.
        for line in lines:
            name, _, value = line.partition(":")
            if not line.strip() and about:
                break
            about[name.strip()] = value.strip()
    parts = [
        about.get(f"CPU {part}", "") for part in ("implementer", "part", "variant", "revision")
    ]
    yield "cpu.model", about.get("model name") or "/".join(parts)
    flags = sorted((about.get("flags") or about.get("Features") or "").split())
    yield "cpu.flags", _digest(" ".join(flags))
    yield "cpu.isa", " ".join(flag for flag in flags if _ISA.match(flag))


def _packages() -> _Items:
    for name, project in PACKAGES.items():
        module = _loaded(name)
        if module is None:
            continue
        # What is imported may be another one than what is installed. Not by getattr, for which some import more.
        version = getattr(module, "__dict__", {}).get("__version__")
        if not isinstance(version, str):
            version = _installed(project or name)
        if version is None:
            continue
        yield f"package.{name}", version
        if name in LAYOUTS and (numbers := re.match(r"0\.\d+|\d+", version)):
            yield f"package.{name}.major", numbers.group()


def _installed(project: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(project)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> _Items:
    """Those of the host, by the driver: no library is asked, and no context is made on one."""
    if not _NVIDIA.is_dir():
        return
    models = []
    for path in sorted(_NVIDIA.glob("gpus/*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        models += [model.group(1).strip()] if model else []
    yield "gpu.models", models
    version = re.search(r"\s(\d+(\.\d+)+)\s", (_NVIDIA / "version").read_text(errors="replace"))
    if version:
        yield "torch.cuda.driver", version.group(1)


def _torch() -> _Items:
    torch = _loaded("torch")
    if torch is None or not hasattr(torch, "_C"):
        return
    # On ROCm, some ask the device, which starts it.
    version = getattr(torch, "version", None)
    asleep = getattr(version, "hip", None) and not torch.cuda.is_initialized()
    for flag in TORCH_FLAGS:
        getter = getattr(torch._C, f"_get_{flag}", None)
        if getter is not None and not (asleep and flag.endswith("preferred_backend")):
            yield f"torch.{flag}", _ask(getter)
    precision = getattr(torch._C, "_get_fp32_precision_getter", None)
    if precision is not None:
        for backend, operations in TORCH_FP32.items():
            for operation in operations:
                value = _ask(functools.partial(precision, backend, operation))
                yield f"torch.fp32_precision.{backend}.{operation}", value
    yield "torch.threads", _ask(torch.get_num_threads)
    yield "torch.interop_threads", _ask(torch.get_num_interop_threads)
    yield "torch.default_dtype", _ask(torch.get_default_dtype)
    if hasattr(torch, "get_default_device"):
        yield "torch.default_device", _ask(torch.get_default_device)
    for device in ("cpu", "cuda"):
        yield f"torch.autocast.{device}", _ask(functools.partial(_autocast, torch, device))
    inductor = _loaded("torch._inductor.config")
    for name in TORCH_INDUCTOR if inductor is not None else ():
        yield f"torch.inductor.{name}", _ask(functools.partial(getattr, inductor, name))
    yield from _torch_build(torch)


def _autocast(torch: Any, device: str) -> str:
    return _text(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else "off")


def _torch_build(torch: Any) -> _Items:
    for name in ("git_version", "cuda", "hip"):
        yield f"torch.version.{name}", getattr(torch.version, name, None)
    shown = str(_ask(torch._C._show_config))
    # The environment decides one line, which `torch.cpu_capability` has.
    yield "torch.build", _digest(re.sub(r"(?m)^.*CPU capability usage.*\n", "", shown))
    for key, pattern in (
        ("mkl", r"Math Kernel Library Version ([\w. -]+?)(?: Product| for|\n)"),
        ("onednn", r"MKL-DNN v([\d.]+)"),
    ):
        if version := re.search(pattern, shown):
            yield f"torch.version.{key}", version.group(1)
    cuda = _loaded("torch.cuda")
    if cuda is not None and cuda.is_initialized():
        yield from _torch_cuda(torch, cuda)


def _torch_cuda(torch: Any, cuda: Any) -> _Items:
    major = str(torch.version.cuda or "").partition(".")[0]
    for library in CUDA_LIBRARIES if major else ():
        names = (f"nvidia-{library}-cu{major}", f"nvidia-{library}")
        version = next(filter(None, map(_installed, names)), None)
        if version:
            yield f"torch.cuda.package.{library}", version
    if hasattr(torch._C, "_nccl_version"):
        yield "torch.cuda.nccl", _ask(lambda: cuda.nccl.version())
    yield "torch.cuda.cudnn", _ask(lambda: torch.backends.cudnn.version())
    for index in range(cuda.device_count()):
        about = cuda.get_device_properties(index)
        processors = getattr(about, "multi_processor_count", 0)
        kind = getattr(about, "gcnArchName", "") or f"sm_{about.major}{about.minor}"
        yield f"torch.cuda.device.{index}", f"{about.name}, {kind}, {processors} processors"


def _numpy() -> _Items:
    config = _loaded("numpy.__config__")
    if config is not None:
        libraries = vars(config).get("CONFIG", {}).get("Build Dependencies", {})
        yield "numpy.blas", _digest(json.dumps(libraries, sort_keys=True, default=str))
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        core = _loaded(name)
        if core is not None and "__cpu_features__" in vars(core):
            features = sorted(
                name for name, there in vars(core)["__cpu_features__"].items() if there
            )
            yield "numpy.cpu", _digest(" ".join(features))
            break


def _jax() -> _Items:
    jax = _loaded("jax")
    if jax is None or not hasattr(jax, "config"):
        return
    for name in JAX_SETTINGS:
        if hasattr(jax.config, f"jax_{name}"):
            yield f"jax.{name}", getattr(jax.config, f"jax_{name}")
    bridge = _loaded("jax._src.xla_bridge")
    # To ask for a backend makes one.
    if bridge is None or not getattr(bridge, "_backends", None):
        return
    devices = jax.local_devices()
    yield "jax.backend", jax.default_backend()
    yield "jax.backend_version", devices[0].client.platform_version
    yield "jax.devices", f"{len(devices)} x {devices[0].device_kind}"
    yield "jax.processes", jax.process_count()


def _variables() -> _Items:
    compiles = any(_loaded(name) is not None for name in ("jax", "torch_xla", "tensorflow"))
    for name, value in os.environ.items():
        # Of no effect on a process that has none of those.
        if name.startswith(("JAX_", "LIBTPU_", "XLA_")) and not compiles:
            continue
        if name not in VARIABLES and (
            not name.startswith(VARIABLE_FAMILIES) or _NOT_NUMERIC.search(name)
        ):
            continue
        if not _CREDENTIAL.search(value):
            yield f"env.{name}", value if len(value) <= 500 else _digest(value)


def _code() -> _Items:
    yield from _code_once()


@functools.cache
def _code_once() -> tuple[tuple[str, str], ...]:
    """What runs: kept, because the files may be edited while it does."""
    found = [("code.argv", _digest(json.dumps(sys.argv[1:])))]
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(file).resolve() if file else None
    if path is None or not path.is_file():
        return tuple(found)
    found += [("code.main", path.name), ("code.main.sha256", _digest(path.read_bytes()))]
    root = next((folder for folder in path.parents if (folder / ".git").exists()), None)
    folders = [folder for folder in path.parents if root and folder.is_relative_to(root)]
    for folder in folders or [path.parent]:
        locks = sorted({lock for pattern in _LOCKS for lock in folder.glob(pattern)})
        if locks:
            whole = [lock for lock in locks if lock.stat().st_size <= _LOCK_BYTES_MAX]
            found += [(f"code.lock.{lock.name}", _digest(lock.read_bytes())) for lock in whole]
            break
    if root is not None:
        found += _git(root)
    return tuple(found)


def _git(root: Path) -> list[tuple[str, str]]:
    """The commit, and a hash of what differs from it in files that git knows: empty if nothing does."""
    # Nobody's settings change the text, and nothing that they name is run.
    shown = [
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--no-renames",
        "--full-index",
        "--binary",
    ]
    shown += ["--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--diff-algorithm=myers"]
    found = []
    commit = _git_says(root, "rev-parse", "HEAD")
    if commit:
        found.append(("code.commit", commit.decode(errors="replace").strip()))
        diff = _git_says(root, "diff", "HEAD", *shown)
        if diff is not None:
            found.append(("code.diff", _digest(diff) if diff else ""))
    return found


def _git_says(root: Path, *words: str) -> bytes | None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_WAIT,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
