"""The command line. `main.py` has the verbs of a run; `data`, `config` and `bench` are groups of their own."""
