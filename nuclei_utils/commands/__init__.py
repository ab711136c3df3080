"""What the commands of the command line do, one module each; `cli` has their options and texts."""
