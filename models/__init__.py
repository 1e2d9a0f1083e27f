"""Reference workloads: plain torch modules with their data. Nothing here imports the search
library.
"""
