"""``python -m advrbd_cli`` is the same as ``advrbd``."""

from advrbd_cli.app import main

if __name__ == "__main__":
    main()
