"""Where runs are trained: jobs.py is what a grid has to do and in which order, local.py the processes that do it."""
