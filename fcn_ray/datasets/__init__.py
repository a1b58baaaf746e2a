"""BRINGING: where images and labels come from; the synthetic demo scenes."""
