class RayCluster:
    pass
