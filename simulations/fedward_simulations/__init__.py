"""Many hospitals on one machine: engines, partitioners, faults, attacks and benchmarks."""
