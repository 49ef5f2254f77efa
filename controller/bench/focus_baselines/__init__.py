"""Rivals of the few-frame focus, each as good as it can be made, in one harness.

`problem` is the instrument of a run with its faults and its bookkeeping; `searches` are the
classical ways through a sharpness curve; `spectral_pair` and `score_loop` are two published ones
of another kind, written anew from their descriptions; `methods` says with which measure and
settings each of them was found to do best on development specimens, by `tuning`.
"""
