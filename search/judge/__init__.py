"""What curves and trials say: verdicts, statistics, summaries.

Pure functions; neither torch nor Optuna.
"""
