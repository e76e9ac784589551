"""What the commands share: configuration sections, the Hydra entry, help, and errors for people."""
