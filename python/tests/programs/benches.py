"""The benchmarks' programs, for forks: ``benches.py worker JOB RESULT`` and ``benches.py command …``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))

from lastgood_bench import command, worker

if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker.do(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(command.main(sys.argv[2:]))
