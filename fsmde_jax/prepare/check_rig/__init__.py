"""Says in words what looks wrong with a rig's calibration: `fsmde_jax.prepare --check`.

There are two kinds of evidence.

- Geometry: the cameras of a ring are a few metres from the origin, above the road and upright. The
  principal point is near the middle of the image. A sweep reaches tens of metres.
- Images: a LiDAR point that two cameras see has the same brightness rank in both. Where depth jumps
  between neighbouring points, brightness tends to jump, too. Both are rank correlations, so
  exposure and contrast do not matter.

Each threshold lies between two measurements: sound rigs, and the same scenes with a fault planted.
The sound rigs were 29 scenes of the miniature world (at 96x160 and 160x256, three or two frames
each, half of them with varied rigs), one scene of the DDAD rig and one nuScenes key frame:

    measure                                      sound            threshold     faulty
    distance of a camera from the origin         1.4 to 2.9 m     30 m          100 times as much
    median range of a sweep                      6.7 to 21 m      300 m         1000 times as much
    height of a camera over the road             1.4 to 2.3 m     0.3 to 8 m    0.1 or less
    y axis down / x axis level (1 / 0 is best)   0.99 / 0.03      0.5 / 0.35    0 / 0.45, inverted
    principal point, share of the image          0.47 to 0.56     0.3 to 0.7    a factor 2 away
    brightness of shared points, best neighbour  0.56 or more     0.3           0.30 or less in 95 %
    gain by exchanging two cameras' images       -0.46 or less    0.25          0.46 or more
    gain by turning the LiDAR                    -0.10 or less    0.06          0.10 or more

The fault in the third row from below is a camera turned by 90°. It goes unseen where the turned
camera shares its view with no other, or with a view that happens to look alike; so look at the
pictures, too. Never found: errors of a few degrees or centimetres, wrong instants, a focal length
that is wrong by a few per cent.
"""
