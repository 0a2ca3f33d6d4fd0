"""The wheel holds marble_opt and its kernels alone, and the README's snippet runs from an installed copy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "*.egg-info", "*cache*", "*.safetensors")


def run(*command: str, cwd: Path, **environment: str) -> str:
    variables = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which the wheel has been installed, far from the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    # A build writes into its source tree, and stale files there would end up in the wheel.
    source = Path(shutil.copytree(CHECKOUT, folder / "source", ignore=LEFT_OUT))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), ".", cwd=source)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def test_only_our_packages_are_installed(installed: Path) -> None:
    found = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert found == {"marble_opt", "marble_kernels"}


def test_every_module_is_installed(installed: Path) -> None:
    def modules(package: Path) -> set[str]:
        return {path.relative_to(package).as_posix() for path in package.rglob("*.py")}

    assert modules(installed / "marble_opt") == modules(CHECKOUT / "marble_opt")
    assert modules(installed / "marble_kernels") == modules(CHECKOUT / "kernels")
    assert (installed / "marble_opt" / "py.typed").exists()


def test_the_licence_is_installed(installed: Path) -> None:
    assert list(installed.glob("marble_opt-*.dist-info/**/LICENSE"))


def test_the_snippet_of_the_readme_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert found is not None, "README.md has no ```python block"
    where = "\nimport marble_opt\nprint(marble_opt.__file__)\n"
    (tmp_path / "snippet.py").write_text(found.group(1) + where)
    output = run(sys.executable, "snippet.py", cwd=tmp_path, PYTHONPATH=str(installed))
    assert output.strip().splitlines()[-1].startswith(str(installed))
