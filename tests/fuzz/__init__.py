"""Random attacks: `attack(draw)` makes one case and says what was wrong with it."""
