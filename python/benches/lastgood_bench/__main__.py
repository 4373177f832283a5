"""``python -m lastgood_bench``."""

import sys

from lastgood_bench.command import main

# Libraries that start processes import this module in them.
if __name__ == "__main__":
    sys.exit(main())
