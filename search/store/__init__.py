"""The results folder and Optuna's storages."""
