"""A replica's port for other deployments, on loopback where its node is there.

Ray 2.60 opens that port on every interface whatever the node's address (`Replica._on_initialized` binds `[::]:0`), and
unpickles what it is sent. On nodes with an address of their own it is left as Ray has it: other nodes must reach it.
"""

from __future__ import annotations

import ray
from ray.serve._private import replica

from recfuse.runtime.ray_compat import LOOPBACK


def keep_on_loopback() -> None:
    """Called in a replica's constructor, after which Serve opens the port."""
    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", LOOPBACK))
