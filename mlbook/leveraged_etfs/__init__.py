"""The room of the chapter on leveraged ETFs: prices, leverage, backtests that keep books, taxes, and what luck does."""
