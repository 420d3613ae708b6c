"""``python -m shd_bids.training CONFIG.toml OUTPUT_DIR``: train the network on simulated volumes."""

from shd_bids.training.train import main

if __name__ == "__main__":
    raise SystemExit(main())
