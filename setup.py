"""A compiled wheel, with VOLTANA_COMPILED=1, as `make wheel` has it; for all else pyproject.toml is enough."""

import os
import shutil
import sys
import sysconfig

from setuptools import Extension, setup

COMPILED = """
dispatch
prediction/ecopred
record/distribution record/summary
sim/fast/actuator sim/fast/decode sim/fast/events sim/fast/instance sim/fast/prefill
sim/plant/decode sim/plant/operators sim/plant/plant sim/plant/throttle
sim/serving/job sim/serving/meter sim/serving/prefill_queue sim/serving/recorder sim/serving/views
"""
"""What a simulation spends its time in. All of it is plain typed Python, which mypyc compiles as it stands.

Not here is what mypyc does not compile (models of pydantic, protocols that are looked for at run time), and what plain
Python may inherit from, which it may not from a compiled class: policies, and what both engines share. Nor is here what
checks the answers of policies, whatever their types.
"""
WANTED = os.environ.get("VOLTANA_COMPILED") == "1"
NEEDED = ["mypy[mypyc]>=2.4", "numpy>=1.26", "pydantic>=2.6"]


def extensions() -> list[Extension]:
    """The compiled modules; none where nobody wants them or nothing can compile them."""
    if not WANTED:
        return []
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        print(f"voltana: no C compiler ({compiler}), so this is the pure Python version", file=sys.stderr)
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:  # it is not there yet: setuptools is only asked what it needs
        return []
    files = [f"voltana/{name}.py" for name in COMPILED.split()]
    made: list[Extension] = mypycify(
        ["--ignore-missing-imports", *files], group_name="voltana", opt_level="2", debug_level="0"
    )
    return made


setup(ext_modules=extensions(), setup_requires=NEEDED if WANTED else [])
