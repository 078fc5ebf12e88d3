"""What `flowpolicy doctor` tries, one program a file: each is run as `python -m flowpolicy.probes.NAME`.

A program imports what it tries inside `main`, so that importing it loads nothing. What it prints last is shown.
"""
