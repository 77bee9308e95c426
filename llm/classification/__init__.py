"""Classifiers, judged honestly. Read `metrics.py`, `baselines.py`, `audit.py`; then `fit.py`, `report.py`."""
