"""`voltana-tune`: search the parameters of a policy."""
