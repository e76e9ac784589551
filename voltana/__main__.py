"""`python -m voltana MODULE ...` is `python -m MODULE ...` with our own packages first (see `voltana.scripts`)."""

import runpy
import sys

import voltana.scripts  # noqa: F401 - puts them first

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m voltana MODULE ...")
    sys.argv[1:], module = sys.argv[2:], sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
