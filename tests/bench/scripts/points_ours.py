import sys

from meticulous import ExperimentReader

print(len(ExperimentReader(sys.argv[1]).metrics))
