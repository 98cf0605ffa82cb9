"""What a site must withstand: hostile messages, values that must not leave, and kills at every point.

Each campaign runs the production site and prints its figures: ``python -m fedward_simulations.faults.X --json``.
"""
