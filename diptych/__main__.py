"""`python -m diptych VERB …` and `torchrun … -m diptych VERB …` are `diptych VERB …`."""

import sys

from diptych.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
