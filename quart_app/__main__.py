"""`python -m quart_app`: run one replica, configured by the environment alone."""

import gc
import sys

if __name__ == "__main__":
    # Nothing that is imported becomes garbage, and looking for it takes a sixth of the start. `Process` ends this.
    gc.disable()
    from quart_app.process import main

    sys.exit(main())
