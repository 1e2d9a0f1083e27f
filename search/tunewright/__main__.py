"""`python -m tunewright`."""

import sys

from tunewright.search.cli import main

sys.exit(main())
