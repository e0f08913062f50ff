"""Scenarios: a timeline with the invoices that must follow from it, in one readable file.

text.py        file -> title, catalogue, statements, expected result; every fault has its line and field
statements.py  one line of the timeline
commands.py    what a statement asks of the deciders
kernel.py      plays statements against the deciders, in memory
usage.py       the usage log in memory
system.py      plays what the kernel did through the running system
golden.py      what came of it, as text
run.py         compares or rewrites
"""
