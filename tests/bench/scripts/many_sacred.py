"""Make ten experiments as soon as standard input is closed."""

import sys

from sacred import Experiment
from sacred.observers import FileStorageObserver


def main(i):
    return i


sys.stdin.read()
for i in range(10):
    experiment = Experiment("many")
    experiment.observers.append(FileStorageObserver("experiments"))
    experiment.add_config(i=i)
    experiment.main(main)
    experiment.run()
