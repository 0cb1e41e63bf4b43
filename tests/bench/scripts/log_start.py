from meticulous import Experiment

with Experiment():
    pass
