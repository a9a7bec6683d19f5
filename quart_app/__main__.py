"""`python -m quart_app`: run one replica, configured by the environment alone."""

import sys

from quart_app.process import main

if __name__ == "__main__":
    sys.exit(main())
