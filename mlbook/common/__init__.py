"""What several chapters share: the small language model with its corpora, training, packages that may be missing."""
