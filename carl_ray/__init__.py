"""Frame-wise action representations from long, unlabelled videos: CARL (Chen et al., CVPR 2022) on Ray."""

import sys

from carl_ray import errors

# A command: `python -m carl_ray.…` imports this package before all else, while sys.argv[0] is still "-m". Whoever
# imports the package for something else keeps their signal handlers.
if sys.argv[:1] == ["-m"]:
    errors.handle_signals()
