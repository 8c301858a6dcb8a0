"""`python -m diptych VERB …` and `torchrun … -m diptych VERB …` are `diptych VERB …`."""

import sys

from diptych.cli.main import main

sys.exit(main())
