"""`python -m qpass` is `qpass`."""

import sys

from qpass.cli import main

sys.exit(main())
