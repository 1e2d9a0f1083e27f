"""The arithmetic of one update: update rules, learning-rate schedules, clip thresholds."""
