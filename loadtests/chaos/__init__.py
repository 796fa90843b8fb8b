"""`make chaos`: unique ids followed through caller, gateway and local service while parts of it are killed."""
