"""What the tests of more than one room share; what is for one room's tests alone lies beside them.

``pictures`` and ``scenes`` make images, ``networks`` models; ``maps`` compares explanations. ``fits`` has the short
fit that most tests make, ``fingerprints`` everything that a fit can move, ``snapshots`` what it leaves; ``faulty``,
``killed`` and ``parallel`` are for fits that break, die and share their work, ``wandb_reader`` reads what W&B wrote.
"""
