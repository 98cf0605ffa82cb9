"""Attacks on what a site releases, as evidence: each must succeed without privacy and be at chance with it.

Every attack sees the production code through one seam, `target.Train`, whose first implementation is
`fedward_client.trainer.train_round`; a defect planted beneath it, or another callable of its signature, is attacked the
same way. `python -m fedward_simulations.attacks` prints the figures.
"""
