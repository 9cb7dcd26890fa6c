"""`python -m kd_plugin.cli`."""

import sys

from kd_plugin.cli import main

sys.exit(main())
