"""The playbook's closed loop as generators of studies: sweep, edge, kind, remedies."""
