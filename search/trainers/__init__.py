"""Training by the user's own code, which is watched, and what is tried before a study runs."""
