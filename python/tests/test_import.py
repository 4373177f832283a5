"""The package as a user meets it first: imported, asked for help, without any framework."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import lastgood as lg
import pytest
from lastgood import _lastgood

FRAMEWORKS = ["torch", "jax", "orbax", "hf", "accelerate", "lightning", "fs"]

#: Hides every framework, as if none were installed.
HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
        check=False,
    )


def test_import_is_light() -> None:
    """No framework is imported, and it takes less than 0.15 s of the processor: the best of five."""
    code = (
        "import sys, time; start = time.process_time(); import lastgood; spent = time.process_time() - start\n"
        "heavy = {'torch', 'jax', 'numpy', 'fsspec', 'transformers'} & set(sys.modules)\n"
        "print(spent, sorted(heavy))"
    )
    seconds = []
    for _ in range(5):
        spent, _, heavy = run(code).stdout.strip().partition(" ")
        assert heavy == "[]"
        seconds.append(float(spent))
    assert min(seconds) < 0.15, seconds


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_framework_that_is_missing_is_one_sentence(name: str) -> None:
    hidden = {
        "torch",
        "jax",
        "orbax",
        "transformers",
        "accelerate",
        "lightning",
        "pytorch_lightning",
        "fsspec",
    }
    code = HIDE.format(hidden=hidden) + (
        "import lastgood as lg\n"
        f"try: lg.{name}\n"
        "except lg.LastgoodError as error: print(type(error).__name__, error)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Invalid ") and "pip install" in done.stdout, done.stdout
    assert len(done.stdout.strip().splitlines()) == 1


def test_saves_and_restores_without_any_framework(tmp_path: Path) -> None:
    code = HIDE.format(hidden={"torch", "jax", "numpy", "fsspec"}) + (
        "import lastgood as lg, sys, random\n"
        f"state = {{'a': {{'n': 1, 't': (1, 2.5, None), 'b': b'xyz'}}}}\n"
        f"run = lg.open({str(tmp_path)!r}, state)\n"
        "step = run.restore()\n"
        "print(step, state['a']['n'], random.random())\n"
        "state['a']['n'] += 1; run.save(step + 1); run.close()\n"
    )
    lines = [run(code).stdout.strip().split() for _ in range(3)]
    assert [line[:2] for line in lines] == [["0", "1"], ["1", "2"], ["2", "3"]]
    assert lines[0][2] != lines[1][2]


def test_a_checkpoint_of_a_framework_that_is_missing_is_told_before_anything_changes(
    tmp_path: Path,
) -> None:
    import torch

    saved = {"n": {"n": 1}, "tensor": {"w": torch.ones(2)}, "dtype": {"d": torch.float16}}
    with lg.open(tmp_path, saved, rng=False) as opened:
        opened.save(3, block=True)
    code = HIDE.format(hidden={"torch"}) + (
        "import lastgood as lg\n"
        "state = {'n': {'n': 0}, 'tensor': {}, 'dtype': {}}\n"
        f"run = lg.open({str(tmp_path)!r}, state, rng=False)\n"
        "def tell(only):\n"
        "    try: print(run.restore(only=only), state)\n"
        "    except lg.Incompatible as error: print('Incompatible', str(error).replace(chr(10), ' '))\n"
        "tell(None); tell(['n', 'dtype']); print(state); tell(['n']); print(run.preflight().ok)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    whole, value, before, only, fits = done.stdout.splitlines()
    absent = "the checkpoint holds values of torch, which is not installed: pip install torch"
    assert whole.startswith("Incompatible") and f"tensor: {absent}" in whole
    assert f"dtype: {absent}" in whole
    assert value.startswith("Incompatible") and absent in value
    assert before == "{'n': {'n': 0}, 'tensor': {}, 'dtype': {}}"
    assert only == "3 {'n': {'n': 1}, 'tensor': {}, 'dtype': {}}" and fits == "False"


def test_the_command_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lastgood", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == f"lastgood {lg.__version__}"
    wrong = subprocess.run(
        [sys.executable, "-m", "lastgood", "ls", "--store", "/nowhere/at/all"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert wrong.returncode == 4 and "holds no lastgood repository" in wrong.stderr


@pytest.mark.skipif("LASTGOOD_INSTALLED" not in os.environ, reason="the package is not installed")
def test_the_installed_command_runs_a_job(tmp_path: Path) -> None:
    """The entry point starts itself again for what it supervises."""
    program = Path(sys.executable).with_name("lastgood")
    done = subprocess.run(
        [
            program,
            "run",
            "--store",
            tmp_path,
            "--run",
            "job",
            "--",
            sys.executable,
            "-c",
            "print('trained')",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout


def test_errors_are_exceptions_one_for_each_kind() -> None:
    kinds = [
        "Invalid", "NotFound", "Conflict", "Fenced", "Unavailable", "Overloaded",
        "Corrupt", "Incompatible", "Diverged", "Denied", "Closed", "Internal",
    ]  # fmt: skip
    for kind in kinds:
        error = getattr(lg, kind)
        assert issubclass(error, lg.LastgoodError) and error.__doc__
        assert error.__module__ == "lastgood"
    assert lg.LastgoodError.__bases__ == (Exception,)
    with pytest.raises(lg.NotFound) as caught:
        lg.runs("/nowhere/at/all")
    assert caught.value.code == "LG002"
    assert caught.value.kind == "not found"
    assert caught.value.remedy
    assert caught.value.causes == []


def public() -> list[tuple[str, object]]:
    modules = [lg]
    for name in ["torch", "jax", "orbax", "hf", "accelerate", "lightning", "data", "fs"]:
        modules.append(importlib.import_module(f"lastgood.{name}"))
    found = []
    for module in modules:
        names = getattr(module, "__all__", None)
        assert names is not None, f"{module.__name__} has no __all__"
        found += [(f"{module.__name__}.{name}", getattr(module, name)) for name in names]
    return found


def test_every_public_name_has_a_docstring() -> None:
    bare = []
    for name, obj in public():
        if not (inspect.isclass(obj) or callable(obj)):
            continue
        doc = inspect.getdoc(obj)
        if not doc:
            bare.append(name)
        elif ">>>" not in doc and not (inspect.isclass(obj) and issubclass(obj, lg.LastgoodError)):
            bare.append(f"{name}: no example")
        if not inspect.isclass(obj):
            continue
        for member, value in vars(obj).items():
            is_code = inspect.isfunction(value) or isinstance(value, property)
            if is_code and not member.startswith("_") and not inspect.getdoc(getattr(obj, member)):
                bare.append(f"{name}.{member}")
    assert not bare


def test_examples_in_docstrings_run() -> None:
    """Every example of the core; those of frameworks run in the frameworks' own tests."""
    count = 0
    for module in [
        "_open",
        "_run",
        "_state",
        "_tree",
        "_policy",
        "_handle",
        "_restore",
        "_preflight",
        "_replay",
    ]:
        result = doctest.testmod(
            importlib.import_module(f"lastgood.{module}"), optionflags=doctest.ELLIPSIS
        )
        assert result.failed == 0
        count += result.attempted
    assert count > 20


def test_native_names_are_private() -> None:
    assert lg.Run is not _lastgood.Run
