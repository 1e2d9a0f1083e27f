"""`python -m tunewright.search`."""

import sys

from .cli import main

sys.exit(main())
