"""Anybody's RGB-D recordings: folders of named frames, or a manifest."""
