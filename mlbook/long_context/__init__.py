"""The room of the chapter on long context: rotary position embeddings, their kernels, Infini-attention."""
