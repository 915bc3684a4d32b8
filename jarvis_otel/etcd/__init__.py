"""Flags of many machines on etcd, through its JSON gateway."""
