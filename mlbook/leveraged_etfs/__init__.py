"""The room of the chapter on leveraged ETFs: prices, and backtests that keep books."""
