"""What pyproject.toml declares, and the wheel: built, installed into an environment of its own, and used there."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IMPORTED_BY_OTHERS = {
    "tensorboard": "torch.utils.tensorboard and Lightning's logger import it",
}


def declared(extra: str | None = None) -> set[str]:
    """Return the names of the core dependencies, or of an extra's, normalised."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings the reader of pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {normalised(re.split(r"[^\w.-]", line)[0]) for line in lines}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """Return the names of the distributions that qexp's sources import, inside functions too."""
    modules: set[str] = set()
    for path in (ROOT / "qexp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    providers = packages_distributions()
    optional = {*declared("launchers"), "triton"}  # triton comes with a torch for GPUs
    third_party = modules - sys.stdlib_module_names - {"qexp"} - optional
    missing = third_party - providers.keys()
    assert not missing, f"no distribution here brings {sorted(missing)}"
    return {normalised(providers[module][0]) for module in third_party}


def test_every_import_is_declared_and_every_dependency_is_used() -> None:
    names = declared()
    found = imported()
    assert found - names == set()
    assert names - found == set(IMPORTED_BY_OTHERS)


def run(*words: object, cwd: Path) -> str:
    """Run a program away from the checkout; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs the `build` package, which the extra `test` brings")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel in it.

    The other packages are this environment's, by a path file: such a file's folders are searched, but the path
    files in them are not, so an editable qexp that is there is not seen.
    """
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("needs ensurepip (on Debian and Ubuntu: apt install python3-venv)")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", wheel, cwd=folder)
    inside = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    shared = f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n"
    Path(inside, "shared.pth").write_text(shared)
    return python.parent


@pytest.mark.slow
def test_the_wheel_holds_the_configurations_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"qexp/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20
    assert {name for name in names if name.startswith("qexp/configs/")} == configs
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "qexp").rglob("*.yaml")}
    assert data and data <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"qexp"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(programs: Path, tmp_path: Path) -> None:
    where = run(programs / "python", "-c", "import qexp; print(qexp.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)
    assert "train" in run(programs / "qexp", "--help", cwd=tmp_path)
    listed = run(programs / "qexp", "list", cwd=tmp_path)
    assert "pact" in listed
    assert "resnet20" in listed
    printed = run(programs / "qexp", "train", "epochs=1", "trainer.threads=1", cwd=tmp_path)
    assert "test accuracy" in printed
    assert len(list(tmp_path.glob("outputs/train/*/result.json"))) == 1
