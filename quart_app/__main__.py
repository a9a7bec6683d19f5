"""`python -m quart_app`: run one replica, configured only by the environment."""

import gc
import sys

if __name__ == "__main__":
    # Imported objects never become garbage, and to search them takes a sixth of the start. `Process` enables garbage
    # collection again.
    gc.disable()
    from quart_app.process import main

    sys.exit(main())
