"""Three ways to run the same coordinator and the same sites."""
