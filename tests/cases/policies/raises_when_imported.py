# built: yes
# says: found 'raises_when_imported.Mine'|FileNotFoundError: |raises_when_imported.py:6)
# above: open("weights.bin")
from pathlib import Path

WEIGHTS = open("weights.bin").read()  # noqa: PTH123, SIM115


class Mine:
    path = Path()
