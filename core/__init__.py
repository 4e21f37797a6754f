"""Transfer optimization for deep models: the plain Python + torch part.

Nothing in this package knows Prefect or MLflow. It can be used from a notebook, a benchmark or another scheduler:

- ``core.transfer``  the paradigm: problem (S, T, K, D, F, budget), effect report, transferability, strategy choice
- ``core.distill``   content level: knowledge flows from a teacher's outputs into a student
- ``core.nas``       structure level: knowledge flows from one search space into another
- ``core.merge``     system level: knowledge flows from many experts into one model
- ``core.evolve``    ask-tell optimizers and the one search loop that ``nas`` and ``merge`` share
"""

__version__ = "0.1.0"
