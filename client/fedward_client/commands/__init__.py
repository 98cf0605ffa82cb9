"""The commands of a hospital, one module for each noun; `fedward_client.cli` puts them together."""
