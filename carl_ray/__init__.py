"""Frame-wise action representations from long, unlabelled videos: CARL (Chen et al., CVPR 2022) on Ray."""
