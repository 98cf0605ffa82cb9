"""The Hydra configuration, packaged as `pkg://fedward_conf`: one group per noun of the study."""
