"""The experiments of Elaldi, Gerig and Dey (NeurIPS 2024), one module and one command each."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the scripts beside this folder import one another by name
