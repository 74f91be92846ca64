"""What draws: a ring's images and depths, films, points from above."""
