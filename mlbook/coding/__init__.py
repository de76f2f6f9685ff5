"""The room of the chapter on compression: codes, coders, models that predict the next symbol, and scaling laws."""
