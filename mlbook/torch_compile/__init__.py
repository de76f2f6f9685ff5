"""The room of the chapter on torch.compile and CUDA graphs."""
