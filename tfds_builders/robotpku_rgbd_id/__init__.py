"""RobotPKU RGBD-ID: 90 people, two recordings each, as the paper prepared them or as they were recorded."""
