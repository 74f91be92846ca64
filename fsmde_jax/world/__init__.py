"""The miniature world: procedural streets, rendered for a ring of cameras and a LiDAR.

`write_world` leaves a dataset in the DGP layout (the one of DDAD), with dense true depth beside
it in `depth/<camera>/<stem>.npz`.

Rays are cast by Embree over triangle meshes (the `embreex` wheel: 14 MB to download, 45 MB
installed, numpy its only dependency); shading is vectorised numpy. Measured on one core: Embree
finds 7 million closest hits a second among 72,000 triangles and 5 million among the 200,000 of a
street (13 million shadow rays); a ray-caster of our own in jitted JAX 0.24 million among 1,200
boxes, so cars and trees with a shape were out of its reach. Mitsuba is a 68 MB download and was
not tried: the shading here needs no light transport. A 320 x 200 image takes about 75 ms of one
core, its share of the layout, the LiDAR and the files included.
"""

from fsmde_jax.world.writer import WorldConfig, WorldError, write_world

__all__ = ["WorldConfig", "WorldError", "write_world"]
