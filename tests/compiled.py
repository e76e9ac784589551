"""Builds a compiled wheel, installs it in an environment of its own, and runs there the tests of what is compiled.

`make test-compiled`, or `python -m tests.compiled ENVIRONMENT`. The environment takes what this project needs from the
one that this runs in. Where there is no C compiler it says so and is done.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("test_compiled.py", "sim/engines/test_laws.py")


def main() -> int:
    """Build, install, test."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        print(f"no C compiler ({compiler}): nothing is compiled here, and nothing tested")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        python = install(build(Path(folder)), Path(sys.argv[1]).absolute())
        shutil.copytree(ROOT / "tests", Path(folder) / "tests")  # away from the sources, which would be imported
        shutil.copytree(ROOT / "conf", Path(folder) / "conf")
        shutil.copy(ROOT / "pyproject.toml", folder)
        words = ["-m", "pytest", "-n", "2", "--dist", "worksteal", *(f"tests/{name}" for name in TESTS)]
        return subprocess.run([python, *words], cwd=folder, check=False).returncode


def build(folder: Path) -> Path:
    """The compiled wheel of a copy of the sources, so that nothing is left among them."""
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "outputs", "build", "dist"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    environment = {**os.environ, "VOLTANA_COMPILED": "1"}
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], env=environment, check=True)
    shutil.rmtree(source)
    return next(folder.glob("*.whl"))


def install(wheel: Path, environment: Path) -> Path:
    """The interpreter of an environment with a wheel and what it needs."""
    venv.create(environment, clear=True, with_pip=False)
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    shutil.unpack_archive(wheel, packages, "zip")
    (packages / "theirs.pth").write_text(sysconfig.get_paths()["purelib"])
    return environment / "bin" / "python"


if __name__ == "__main__":
    sys.exit(main())
