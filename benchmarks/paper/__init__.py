"""The parts of paper_experiments.py: the laboratory, the two methods, uncertainty, charts, tables."""
