"""What the lab finds: the papers' claims beside what the `findings` grids measure, and a verdict by a rule.

    claims.toml   what the papers claim, as contrasts of rows; and what is to be said of each
    measured.py   run folders → docs/findings/runs.csv, a row a run, every value that a claim is of
    verdicts.py   runs.csv and the claims → verdicts.csv
    rates.py      the learning-rate sweep → docs/findings/rates.csv
    quotes.py     the numbers that prose names, as CSV has them
    document.py   all of these → FINDINGS.md

`python -m experiments.findings` does it all; FINDINGS.md follows from the CSVs alone.
"""
