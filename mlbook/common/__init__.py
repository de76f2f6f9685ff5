"""What several chapters share: the small language model with its corpora and training, timing, Triton on any machine,
data sheets of cards, packages that may be missing."""
