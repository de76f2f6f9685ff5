"""The room of the chapter on flow matching."""
