"""Training on this process's device, alone or many trials as rows of a stack.

Knows no files and no Optuna.
"""
