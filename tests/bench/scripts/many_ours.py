"""Make ten experiments as soon as standard input is closed."""

import sys

from meticulous import Experiment

sys.stdin.read()
for i in range(10):
    with Experiment({"i": i}) as experiment:
        experiment.summary(i=i)
