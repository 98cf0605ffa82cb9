"""Differential privacy at the site: what is sampled, clipped, noised and counted, and nothing else.

`plan.PrivacyPlan` is the only door: it alone builds a sampler, a clipping engine and a source of noise, from the
study's public numbers. A sum knows its own sensitivity (`sums.ClippedSum`), and noise reads its scale from there.
"""
