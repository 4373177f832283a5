"""The fingerprint of a process: each setting that decides bits is in it, under its own key, and no secret is."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lastgood import _environment, _lastgood

PROGRAM = """
import json, sys
from lastgood import _environment
found = _environment.collect()
assert found == _environment.collect() and list(found) == sorted(found)
frameworks = sorted({"torch", "jax", "numpy", "transformers"} & set(sys.modules))
print(json.dumps([found, frameworks]))
"""


def run(path: Path, *arguments: str, **variables: str) -> tuple[Any, list[str]]:
    """What a program of its own finds, and which frameworks it has imported then."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        env={**kept, **variables},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, frameworks = json.loads(done.stdout)
    return found, frameworks


def changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


def test_no_framework_is_imported_and_two_processes_agree(program: Path) -> None:
    found, frameworks = run(program)
    assert frameworks == []
    assert {key.partition(".")[0] for key in found} >= {"python", "os", "cpu", "host", "code"}
    assert not [key for key in found if key.startswith(("torch.", "jax.", "numpy."))]
    assert run(program) == (found, frameworks)


def test_variables_change_their_key_alone(program: Path) -> None:
    before, _ = run(program)
    for name, value in {
        "OMP_NUM_THREADS": "7",
        "MKL_CBWR": "COMPATIBLE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NCCL_ALGO": "Ring",
        "PYTHONHASHSEED": "1",
        "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    }.items():
        after, _ = run(program, **{name: value})
        assert changes(before, after) == {f"env.{name}"}
        assert after[f"env.{name}"] == value
        assert _environment.effect_of(f"env.{name}") == "numerics"


def test_no_secret_is_in_it(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    planted = "hunter2hunter2"
    names = ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "MKL_LICENSE_KEY", "JAX_AUTH"]
    names += ["TORCHINDUCTOR_REDIS_PASSWORD", "TRITON_CACHE_DIR", "XLA_PROXY", "HOME_OF_ALL"]
    variables = dict.fromkeys(names, planted)
    variables["XLA_FLAGS"] = f"--xla_remote=grpc://me:{planted}@somewhere"
    variables["JAX_OPTIONS"] = f"a=1,api_key={planted}"
    variables["OMP_PLACES"] = "cores"
    pytest.importorskip("jax")
    program.write_text("import jax\n" + PROGRAM)
    found, _ = run(program, "--password", planted, **variables)
    assert planted not in json.dumps(found)
    assert found["env.OMP_PLACES"] == "cores"


def git(folder: Path, *words: str) -> None:
    settings = [
        "-c",
        "user.name=someone",
        "-c",
        "user.email=some@one",
        "-c",
        "commit.gpgsign=false",
    ]
    command = ["git", "-C", str(folder), *settings, *words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_code_is_told_by_commit_and_by_what_differs_from_it(program: Path) -> None:
    folder = program.parent
    without, _ = run(program)
    assert without["code.main"] == "train.py" and "code.commit" not in without
    model = folder / "model.py"
    model.write_text("width = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    clean, _ = run(program)
    assert changes(without, clean) == {"code.commit", "code.diff"}
    assert clean["code.diff"] == "" and len(clean["code.commit"]) == 40

    model.write_text("width = 2\n")
    dirty, _ = run(program)
    assert changes(clean, dirty) == {"code.diff"} and len(dirty["code.diff"]) == 32
    git(folder, "commit", "-q", "-a", "-m", "second")
    committed, _ = run(program)
    assert changes(clean, committed) == {"code.commit"}

    (folder / "requirements-gpu.txt").write_text("torch==2.15.0\n")
    locked, _ = run(program, "--lr", "0.1")
    assert changes(committed, locked) == {"code.lock.requirements-gpu.txt", "code.argv"}
    program.write_text(program.read_text() + "# Edited.\n")
    edited, _ = run(program, "--lr", "0.1")
    assert changes(locked, edited) == {"code.main.sha256", "code.diff"}


def test_nothing_that_git_is_told_to_run_is_run(program: Path) -> None:
    folder = program.parent
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    program.write_text(program.read_text() + "# Edited.\n")
    before, _ = run(program)
    hostile = folder / "hostile.sh"
    hostile.write_text(f"#!/bin/sh\necho run >> {folder}/ran\necho something else\n")
    hostile.chmod(0o755)
    for name in ("diff.external", "core.fsmonitor", "core.pager"):
        git(folder, "config", name, str(hostile))
    git(folder, "config", "diff.noprefix", "true")
    git(folder, "config", "color.diff", "always")
    after, _ = run(program)
    assert changes(before, after) == set() and before["code.diff"]
    assert not (folder / "ran").exists()


def plant(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)


def test_a_version_changes_its_key_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    monkeypatch.delitem(sys.modules, "webdataset", raising=False)
    before = _environment.collect()
    plant(monkeypatch, "deepspeed", __version__="0.19.1")
    planted = _environment.collect()
    assert changes(before, planted) == {"package.deepspeed", "package.deepspeed.major"}
    assert planted["package.deepspeed.major"] == "0.19"
    plant(monkeypatch, "deepspeed", __version__="0.19.2+cu132")
    assert changes(planted, _environment.collect()) == {"package.deepspeed"}

    # One that does not tell its version itself.
    folder = tmp_path / "webdataset-9.8.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: webdataset\nVersion: 9.8.7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "package.webdataset" not in _environment.collect()
    plant(monkeypatch, "webdataset")
    assert _environment.collect()["package.webdataset"] == "9.8.7"


def test_a_library_that_fails_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> bool:
        raise RuntimeError("a mix of old and new settings")

    getters = {"_get_cudnn_enabled": fails, "_get_mkldnn_enabled": lambda: True}
    plant(monkeypatch, "torch", _C=types.SimpleNamespace(**getters))
    plant(monkeypatch, "jax", config=None)
    found = _environment.collect()
    assert found["torch.cudnn_enabled"] == "absent" and found["torch.mkldnn_enabled"] == "true"
    assert "torch.threads" not in found and "python.version" in found and "code.argv" in found


def test_devices_are_told_of_when_they_are_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No test has a device: a driver, a library and a device are planted."""
    (tmp_path / "gpus/0000:4e:00.0").mkdir(parents=True)
    about = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\n"
    (tmp_path / "gpus/0000:4e:00.0/information").write_text(about)
    version = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 2023\n"
    )
    (tmp_path / "version").write_text(f"{version}GCC version:  gcc version 12.3.0 (Debian)\n")
    (tmp_path / "nvidia_cublas-13.4.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: nvidia-cublas\nVersion: 13.4.1\n"
    (tmp_path / "nvidia_cublas-13.4.1.dist-info/METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_environment, "_NVIDIA", tmp_path)
    device = types.SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    cuda = types.SimpleNamespace(
        is_initialized=lambda: False,
        nccl=types.SimpleNamespace(version=lambda: (2, 30, 7)),
        device_count=lambda: 1,
        get_device_properties=lambda index: device,
    )
    cudnn = types.SimpleNamespace(version=lambda: 92600)
    names: dict[str, Any] = {
        "_C": types.SimpleNamespace(_nccl_version=None, _show_config=lambda: "built"),
        "version": types.SimpleNamespace(cuda="13.2"),
        "cuda": cuda,
        "backends": types.SimpleNamespace(cudnn=cudnn),
    }
    for name in ("get_num_threads", "get_num_interop_threads", "get_default_dtype"):
        names[name] = lambda: 1
    plant(monkeypatch, "torch", **names)
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    asleep = _environment.collect()
    assert asleep["gpu.models"] == "NVIDIA H100 80GB HBM3"
    assert asleep["torch.cuda.driver"] == "535.129.03"
    cuda.is_initialized = lambda: True
    awake = _environment.collect()
    assert {key: awake[key] for key in changes(asleep, awake) if "package" not in key} == {
        "torch.cuda.nccl": "2,30,7",
        "torch.cuda.cudnn": "92600",
        "torch.cuda.device.0": "NVIDIA H100, sm_90, 132 processors",
    }
    assert awake["torch.cuda.package.cublas"] == "13.4.1"


@pytest.fixture
def torch() -> Iterator[Any]:
    """As it was before, afterwards."""
    torch = pytest.importorskip("torch")
    kept = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )
    yield torch
    torch.set_num_threads(kept[0])
    torch.set_default_dtype(kept[1])
    torch.set_float32_matmul_precision(kept[2])
    # As torch.use_deterministic_algorithms, which imports a compiler beside.
    torch._C._set_deterministic_algorithms(kept[3])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.set_num_threads(t.get_num_threads() + 1), {"torch.threads"}),
        (lambda t: t.set_default_dtype(t.float64), {"torch.default_dtype"}),
        (
            lambda t: t.set_float32_matmul_precision("high"),
            {
                "torch.float32_matmul_precision",
                "torch.cublas_allow_tf32",
                "torch.fp32_precision.cuda.matmul",
                "torch.fp32_precision.mkldnn.matmul",
            },
        ),
        (lambda t: t._C._set_deterministic_algorithms(True), {"torch.deterministic_algorithms"}),
    ],
    ids=["threads", "dtype", "matmul", "deterministic"],
)
def test_a_setting_of_torch_changes_its_keys_alone(
    torch: Any, change: Callable[[Any], None], expected: set[str]
) -> None:
    before = _environment.collect()
    change(torch)
    after = _environment.collect()
    assert changes(before, after) == expected
    assert {_environment.effect_of(key) for key in expected} == {"numerics"}


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_flags_of_torch_by_their_context(torch: Any) -> None:
    before = _environment.collect()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert changes(before, _environment.collect()) == {"torch.autocast.cpu"}
    with torch.backends.mkldnn.flags(enabled=False):
        assert "torch.mkldnn_enabled" in changes(before, _environment.collect())
    if torch.set_flush_denormal(True):
        try:
            assert changes(before, _environment.collect()) == {"cpu.flush_denormal"}
        finally:
            torch.set_flush_denormal(False)
    assert _environment.collect() == before


def test_every_flag_of_torch_that_sounds_of_numbers_is_known(torch: Any) -> None:
    """A new release of torch has new ones: each belongs in the table, or here."""
    left_out = {
        # With arguments, the default of another, about versions of saved programs, and a sum of bytes.
        "fp32_precision_getter", "blas_default_backend", "cudnn_batch_norm_reserve_space_size",
    }  # fmt: skip
    sounds = "cudnn|cublas|sdp|precision|determin|mkldnn|onednn|reduc|capab|prefer|carve|tf32|fp16"
    names = [name[5:] for name in dir(torch._C) if name.startswith("_get_")]
    heard = {name for name in names if re.search(sounds, name)}
    assert heard - left_out <= set(_environment.TORCH_FLAGS)
    found = _environment.collect()
    assert len([flag for flag in _environment.TORCH_FLAGS if f"torch.{flag}" in found]) > 25


def test_jax_tells_its_settings_and_makes_no_backend(program: Path) -> None:
    pytest.importorskip("jax")
    program.write_text(
        "import json, os\n"
        "from lastgood import _environment\n"
        "os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=false'\n"
        "assert 'env.XLA_FLAGS' not in _environment.collect()\n"
        "import jax\n"
        "assert 'env.XLA_FLAGS' in _environment.collect()\n"
        "found = [_environment.collect()]\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "found.append(_environment.collect())\n"
        "jax.devices()\n"
        "print(json.dumps([[*found, _environment.collect()], []]))\n"
    )
    (found, wide, begun), _ = run(program, JAX_PLATFORMS="cpu")
    assert found["jax.enable_x64"] == "false" and "jax.backend" not in found
    assert changes(found, wide) == {"jax.enable_x64"}
    assert {key.partition(".")[0] for key in changes(wide, begun)} == {"jax"}
    assert begun["jax.backend"] == "cpu" and begun["jax.devices"].endswith(" x cpu")


def test_what_a_difference_means() -> None:
    for key, effect in {
        "torch.threads": "numerics",
        "package.torch": "numerics",
        "package.torch.major": "safety",
        "package.lastgood": "information",
        "package.orbax.checkpoint": "numerics",
        "package.megatron.core.major": "safety",
        "code.commit": "numerics",
        "code.main": "information",
        "code.argv": "information",
        "cpu.count": "information",
        "code.main.sha256": "numerics",
        "code.lock.uv.lock": "information",
        "cpu.flags": "information",
        "cpu.isa": "numerics",
        "os.release": "information",
        "libc": "numerics",
        "env.CUDA_VISIBLE_DEVICES": "information",
        "of.a.later.version": "numerics",
    }.items():
        assert _environment.effect_of(key) == effect, key
    families = {re.sub(r"\..*", ".", key) for key in _lastgood.effects()}
    assert {re.sub(r"\..*", ".", key) for key in _environment.collect()} <= families


def test_it_takes_milliseconds() -> None:
    _environment.collect()
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        _environment.collect()
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.05, seconds


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(importlib.import_module("lastgood._environment"))
    assert result.failed == 0 and result.attempted >= 3
