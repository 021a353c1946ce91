"""Many machines: units (a block, or the output head) trained in other processes, with no traffic
between them. Each unit's checkpoint is in a store, from which any worker goes on with it.

Each engine is imported only where it is asked for, since it is an extra.
"""
