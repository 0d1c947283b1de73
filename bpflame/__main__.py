"""`python3 -m bpflame`: the command line, also from a bare checkout."""

import sys

from bpflame.cli import main

if __name__ == "__main__":
    sys.exit(main())
