"""Where runs are trained: so far, in processes of this machine."""
