"""``python -m shd_bids``: the same as the command ``shd_bids``."""

from shd_bids.cli.main import run

if __name__ == "__main__":
    run()
