import sys

from meticulous import Experiment

Experiment({}, experiments_directory=sys.argv[1], allow_dirty=True)
