"""In the processes of a test session: a launcher is forked from one that has imported the libraries already (`mother`).

Python imports this module when it starts, before anything of ours. Whoever starts a launcher sees a process that lives as
long as the launcher does and ends as it ends; its pid alone is another one, and a launcher tells its own.
"""

import os
import sys

LAUNCHER = "aiaas_magics.backend.workers.local.launcher"
FOLDER = "AIAAS_TEST_LAUNCHERS"

if LAUNCHER in sys.orig_argv and FOLDER in os.environ:
    import mother

    mother.stand_in(os.environ[FOLDER], sys.orig_argv[sys.orig_argv.index(LAUNCHER) + 1 :])
