"""Low-rank adapters: what a file holds, and how layers compute with them, each image of a batch with its own."""
