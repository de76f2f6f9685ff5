"""The room of the chapter on training with Hugging Face's libraries."""
