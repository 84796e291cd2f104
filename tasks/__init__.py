"""The steps of a night, and the logic behind them."""
