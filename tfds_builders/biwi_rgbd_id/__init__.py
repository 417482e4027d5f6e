"""BIWI RGBD-ID: 50 people before a Kinect, 28 of them again on another day, as recorded or as the paper prepared it."""
